"""TDPO (Zhang et al. 2024, arXiv 2402.08552): a temporal critic credits every denoising step, and every step updates.

Temporal reward (section 4.1): A_t = G_t - V(x_t, t), G_t the return of the steps from t on. With the reward at the end
and no discount G_t is the per-prompt normalised reward. The policy takes a PPO-clipped step per timestep, and V a
clipped regression step on G_t beside it. TDPO-R is TDPO with `reset=active`.

Where the authors' code and this file differ: A_t is standardised within each timestep, so that a critic that is
better late than early does not scale the steps against each other (theirs: over everything; `normalise_over=all`),
and clipped; an update sees one and the same timestep of all its samples (theirs are shuffled per sample first,
`shuffle_timesteps`).
"""

from dataclasses import replace
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from src.algorithms.base import Algorithm, Loss, PerRow, clipped_surrogate, clipped_value_loss, step_and_log_prob
from src.normalise import standardise
from src.policy.diffusion import DiffusionPolicy
from src.types import Credit, Rows


class TDPO(Algorithm):
    """A_t = standardised G_t - V(x_t, t), clipped to +-advantage_clip.

    Args:
        clip_range: of the ratio pi_theta / pi_old. value_clip_range: of the critic's step, in its loss.
        advantage_clip: of the advantages, in standard deviations.
        normalise_over: samples of one `timestep`, or `all` samples and steps (the authors').
    """

    uses_critic = policy_gradient = True

    def __init__(
        self,
        clip_range: float,
        value_clip_range: float,
        advantage_clip: float,
        normalise_over: Literal["timestep", "all"] = "timestep",
        schedule: Literal["timestep", "trajectory"] = "timestep",
        **others: Any,
    ):
        super().__init__(schedule, **others)
        self.clip_range, self.value_clip_range, self.advantage_clip = clip_range, value_clip_range, advantage_clip
        self.normalise_over = normalise_over

    def credit(
        self, returns: Float[Tensor, "b t"], step_std: Float[Tensor, " t"], values: Float[Tensor, "b t"] | None
    ) -> Credit:
        assert values is not None, "TDPO needs a critic"
        axes = (0,) if self.normalise_over == "timestep" else (0, 1)
        advantages = standardise(returns - values, axes).clamp(-self.advantage_clip, self.advantage_clip)
        return Credit(advantages * self.weights(step_std), returns, values)

    def loss(self, rows: Rows, policy: DiffusionPolicy) -> Loss:
        step, log_prob = step_and_log_prob(rows, policy)
        loss = clipped_surrogate(log_prob - rows.old_log_prob, rows.advantage, self.clip_range)
        return replace(loss, steps=[step])

    def critic_loss(self, value: PerRow, old_value: PerRow, target: PerRow) -> Float[Tensor, ""]:
        return clipped_value_loss(value, old_value, target, self.value_clip_range)
