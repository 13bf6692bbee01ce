"""DPOK (Fan et al. 2023, arXiv 2305.16381): the policy gradient of a KL-regularised reward, several steps a rollout.

Algorithm 1: minimise -alpha (r - V) clip(rho, 1 +- eps) + beta KL(p_theta(x_{t-1} | x_t) || p_base(x_{t-1} | x_t)), r
the reward of the final picture and V a baseline that is optional here.

As in the authors' code a rollout gives five optimizer steps, each on a small part of what was sampled (there 48 of the
last 1,000 rows): here on one state of every sample (`schedule: timestep`, `shuffle_timesteps`). And the ratio is
clipped without a minimum: a row out of range has no policy gradient, whichever way it would move. Their code has the
squared difference of the noise predictions in place of the KL, and rewards as they are; here are the paper's KL and,
as elsewhere, rewards normalised by prompt (`rewards=raw` takes them as they are).
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Literal

from jaxtyping import Float, Int
from torch import Tensor

from src.algorithms.base import Algorithm, Loss, PerRow, clipped_value_loss, step_and_log_prob
from src.errors import UserError
from src.normalise import PromptNormaliser
from src.policy.diffusion import DiffusionPolicy
from src.policy.gaussian import gaussian_kl
from src.types import Credit, Rows


class DPOK(Algorithm):
    """-reward_weight A clip(rho) + kl_weight KL per latent dimension, as the log-probabilities are.

    Args:
        reward_weight, kl_weight: alpha and beta; their ratio decides.
        clip_range: of the ratio pi_theta / pi_old.
        baseline: `critic` takes V(x_t, t) off the reward. value_clip_range: of the critic's step.
        rewards: normalised by `prompt`, or `raw`.
        policy_steps: optimizer steps on a rollout, of those that schedule and `inner_epochs` give; null for all.
    """

    needs_reference = policy_gradient = True
    own_kl = "algorithm.kl_weight"

    def __init__(
        self,
        clip_range: float,
        reward_weight: float = 100.0,
        kl_weight: float = 0.01,
        baseline: Literal["none", "critic"] = "none",
        rewards: Literal["prompt", "raw"] = "prompt",
        value_clip_range: float = 0.2,
        policy_steps: int | None = None,
        **schedule: Any,
    ):
        super().__init__(**schedule)
        if policy_steps is not None and policy_steps < 1:
            raise UserError(f"algorithm.policy_steps={policy_steps} must be at least 1.")
        self.policy_steps = policy_steps
        self.clip_range, self.value_clip_range = clip_range, value_clip_range
        self.reward_weight, self.kl_weight, self.rewards = reward_weight, kl_weight, rewards
        self.uses_critic = baseline == "critic"

    def updates(self, b: int, t: int, *keys: int) -> Iterator[tuple[Int[Tensor, " n"], Int[Tensor, " n"]]]:
        return islice(super().updates(b, t, *keys), self.policy_steps)

    def rows_trained(self, b: int, t: int) -> int:
        return sum(len(samples) for samples, _ in self.updates(b, t))

    def normalise(
        self, rewards: Float[Tensor, " b"], prompts: Sequence[str], running: PromptNormaliser
    ) -> Float[Tensor, " b"]:
        return rewards if self.rewards == "raw" else running(rewards, prompts)

    def credit(
        self, returns: Float[Tensor, "b t"], step_std: Float[Tensor, " t"], values: Float[Tensor, "b t"] | None
    ) -> Credit:
        worth = returns if values is None else returns - values
        return Credit(worth * self.weights(step_std), returns, values)

    def loss(self, rows: Rows, policy: DiffusionPolicy) -> Loss:
        step, log_prob = step_and_log_prob(rows, policy)
        ratio = (log_prob - rows.old_log_prob).exp()
        kept = ratio.clamp(1 - self.clip_range, 1 + self.clip_range)
        kl = gaussian_kl(step.mean, rows.reference_mean, step.std) / step.mean[0].numel()
        value = -self.reward_weight * (rows.advantage * kept).mean() + self.kl_weight * kl.mean()
        return Loss(value, [step], (ratio.detach(), (kept != ratio).float()))

    def critic_loss(self, value: PerRow, old_value: PerRow, target: PerRow) -> Float[Tensor, ""]:
        return clipped_value_loss(value, old_value, target, self.value_clip_range)
