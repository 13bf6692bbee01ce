"""What an algorithm is: what a row (a sample at a timestep slot) is worth, its credit, and what it costs, its loss."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from src.errors import UserError
from src.normalise import PromptNormaliser
from src.policy.diffusion import DiffusionPolicy
from src.policy.gaussian import gaussian_log_prob
from src.seeding import generator_of
from src.types import Credit, Metrics, Rows, States

PerRow = Float[Tensor, " n"]


@dataclass
class Step:
    """p_theta(x_{t-1} | x_t, c) = N(mean, std^2 I), a step of each row, with a gradient."""

    mean: Float[Tensor, "n c h w"]
    std: Float[Tensor, "n 1 1 1"]
    at: States | None = None  # where it was taken; None for the rows' own states
    reference_mean: Float[Tensor, "n c h w"] | None = None  # what the reference does there, where it has been asked


@dataclass
class Loss:
    """What rows cost, averaged over them, and what to watch beside it."""

    value: Float[Tensor, ""]
    steps: list[Step] = field(default_factory=list)  # the policy's, for whoever keeps it near the reference
    ratios: tuple[PerRow, PerRow] | None = None  # pi_theta / pi_old, and 1 where a clip took the gradient away
    metrics: dict[str, Float[Tensor, ""]] = field(default_factory=dict)  # means over the rows, by glossary key
    nat: float | None = None  # what a nat of these steps costs at beta = 1; None: means over steps and dimensions


class Algorithm:
    """Base of all algorithms.

    Args:
        schedule: `timestep` steps the optimizer on one timestep of `samples_per_update` samples at a time,
            `trajectory` on all timesteps of them.
        samples_per_update: samples behind one optimizer step; null for all of the iteration.
        inner_epochs: passes over a rollout.
        timestep_fraction: share of the denoising steps with a density that are trained, the noisiest first (of DDPO's
            authors: so many at random); the rest are only sampled.
        shuffle_timesteps: an update of schedule `timestep` sees another timestep of each of its samples, as in the
            authors' code of TDPO, and not one and the same.
        timestep_weighting: how much a step's advantage (D3PO: its loss) counts. `uniform` is the gradient as it is; its
            terms grow as 1 / sigma_t, so that the last, almost noiseless steps drown the first, which decide the
            picture. `variance` weighs by sigma_t^2 (mean 1), in the spirit of noise-aware weighting (TempFlow-GRPO,
            2508.04324).
        shared_noise: samples of one group start from the same x_T (DanceGRPO, D3PO).
    """

    uses_critic = False
    needs_reference = False  # asks what the reference does at the rows
    needs_means = False  # asks where the policy that sampled had its means
    needs_groups = False  # compares samples of one prompt
    pairs = False  # a row is a pair of them, which must lie on one rank
    group_size: int | None = None  # samples of a prompt side by side, once that is known
    policy_gradient = False  # a row costs its advantage times its log-density, or ratio
    uses_returns = True  # what a step is worth decides; otherwise the reward's gradient
    weighs_rows = True  # by their advantages; otherwise rows are pairs, or all alike
    gradients_a_sample = 0  # pictures that the reward's gradient is taken of
    whole_trajectory = False  # starts from any of its states, whichever steps are trained
    own_kl = ""  # the option that already keeps the policy near the reference
    idle_at_first = ""  # what has been chosen that does nothing in the first optimizer step on a rollout

    def __init__(
        self,
        schedule: Literal["timestep", "trajectory"] = "trajectory",
        samples_per_update: int | None = None,
        inner_epochs: int = 1,
        timestep_weighting: Literal["uniform", "variance"] = "uniform",
        timestep_fraction: float = 1.0,
        shuffle_timesteps: bool = False,
        shared_noise: bool = False,
    ):
        if inner_epochs < 1:
            raise UserError(f"algorithm.inner_epochs={inner_epochs} must be at least 1.")
        if not 0 < timestep_fraction <= 1:
            raise UserError(f"algorithm.timestep_fraction={timestep_fraction} lies outside 0 (exclusive) to 1.")
        self.timestep_fraction, self.shuffle_timesteps = timestep_fraction, shuffle_timesteps
        self.schedule, self.samples_per_update, self.inner_epochs = schedule, samples_per_update, inner_epochs
        self.timestep_weighting, self.shared_noise = timestep_weighting, shared_noise

    def trained_steps(self, num_steps: int) -> int:
        """How many of so many steps with a density are trained."""
        return max(1, round(self.timestep_fraction * num_steps))

    def weights(self, step_std: Float[Tensor, " t"]) -> Float[Tensor, " t"]:
        """Factors of the timesteps' advantages, 1 on average."""
        raw = step_std**2 if self.timestep_weighting == "variance" else torch.ones_like(step_std)
        return raw / raw.mean()

    def sampling(self, policy: DiffusionPolicy) -> AbstractContextManager:
        """Within, the policy samples as the algorithm wants; as it is, unless an algorithm samples from another one."""
        return nullcontext()

    def after(self, policy: DiffusionPolicy, updates: int) -> Metrics:
        """Called at the end of an iteration, after so many optimizer steps in all."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of it, beside the policy's and the critic's weights."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Of an earlier session."""

    # -------------------------------------------------------------------------------------- what a row is worth

    def normalise(
        self, rewards: Float[Tensor, " b"], prompts: Sequence[str], running: PromptNormaliser
    ) -> Float[Tensor, " b"]:
        """Rewards of different prompts on one scale: by each prompt's running moments; some algorithms have others."""
        return running(rewards, prompts)

    def credit(
        self, returns: Float[Tensor, "b t"], step_std: Float[Tensor, " t"], values: Float[Tensor, "b t"] | None
    ) -> Credit:
        """What each step is worth.

        Args:
            returns: of each step, in normalised reward: the reward at the end, less what a regulariser takes from it.
            step_std: standard deviation sigma_t of every trained step.
            values: the critic's, of the states before them.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define credit")

    def credit_less(
        self,
        penalty: Float[Tensor, "b t"] | None,
        returns: Float[Tensor, "b t"],
        step_std: Float[Tensor, " t"],
        values: Float[Tensor, "b t"] | None,
    ) -> Credit:
        """Credit less what a regulariser takes off: off the returns or, of a policy gradient, off the advantages.

        So that neither a clip nor a weight of the latter changes what the regulariser asks for.
        """
        if penalty is None:
            return self.credit(returns, step_std, values)
        if not self.policy_gradient:
            return self.credit(returns - penalty, step_std, values)
        credit = self.credit(returns, step_std, values)
        return replace(credit, advantages=credit.advantages - penalty)

    # --------------------------------------------------------------------------------------- what a row costs

    def updates(self, b: int, t: int, *keys: int) -> Iterator[tuple[Int[Tensor, " n"], Int[Tensor, " n"]]]:
        """(sample, timestep slot) rows of each optimizer step: timesteps in sampling order, row by row.

        What is drawn is a function of `keys`: the run's seed, and the iteration.
        """
        size = self.samples_per_update or b
        for epoch in range(self.inner_epochs):
            rng = generator_of(*keys, b, epoch)
            # one of every b / size neighbours at random: each update sees all prompts, and as many of every rank
            places = torch.stack([torch.randperm(b // size, generator=rng) for _ in range(size)])
            groups = (places + torch.arange(0, b, b // size)[:, None]).T
            if self.schedule == "trajectory":
                for group in groups:
                    yield group.repeat(t), torch.arange(t).repeat_interleave(len(group))
            else:
                slots = torch.arange(t).repeat(b, 1)
                if self.shuffle_timesteps:
                    slots = torch.stack([torch.randperm(t, generator=rng) for _ in range(b)])
                for k in range(t):
                    for group in groups:
                        yield group, slots[group, k]

    def rows_trained(self, b: int, t: int) -> int:
        """How many rows the optimizer steps of a rollout see, of b samples with t trained steps each."""
        return b * t * self.inner_epochs

    def firsts(self, prompts: Sequence[str]) -> list[int]:
        """Of each sample the first one of its group: of its prompt, unless an algorithm has other groups."""
        return [prompts.index(prompt) for prompt in prompts]

    def loss(self, rows: Rows, policy: DiffusionPolicy) -> Loss:
        """What these rows cost, with a gradient in the policy's parameters."""
        raise NotImplementedError(f"{type(self).__name__} does not define loss")

    def critic_loss(self, value: PerRow, old_value: PerRow, target: PerRow) -> Float[Tensor, ""]:
        """Mean over rows of what V(x_t, t) costs, given V before the update and its target, in normalised reward."""
        raise NotImplementedError(f"{type(self).__name__} has no critic")


def step_and_log_prob(rows: Rows, policy: DiffusionPolicy) -> tuple[Step, PerRow]:
    """p_theta(x_{t-1} | x_t, c) at the rows, and its log-density of the x_{t-1} sampled (mean over dimensions)."""
    mean, std = policy.step_distribution(rows.x_t, rows.t, rows.conditioning)
    return Step(mean, std), gaussian_log_prob(rows.x_prev, mean, std)


def clipped_surrogate(log_ratio: PerRow, advantage: PerRow, low: float, high: float | None = None) -> Loss:
    """PPO's clipped surrogate (Schulman et al. 2017, eq. 7), as a loss: its negative, averaged over rows.

    The ratio pi_theta / pi_old is clipped to 1 - low .. 1 + high (null: low).
    """
    ratio, high = log_ratio.exp(), low if high is None else high
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
    out_of_range = torch.where(advantage > 0, ratio > 1 + high, ratio < 1 - low)
    return Loss(-surrogate.mean(), ratios=(ratio.detach(), (out_of_range & (advantage != 0)).float()))


def clipped_value_loss(value: PerRow, old_value: PerRow, target: PerRow, clip_range: float) -> Float[Tensor, ""]:
    """Half the larger of the squared errors of V and of V kept within `clip_range` of its old value, averaged."""
    near = old_value + (value - old_value).clamp(-clip_range, clip_range)
    return 0.5 * torch.maximum((value - target) ** 2, (near - target) ** 2).mean()
