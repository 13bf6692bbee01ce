"""What an algorithm is: it credits denoising steps with reward, and turns credit into losses."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from src.errors import UserError
from src.seeding import generator_of
from src.types import Credit

Rows = Float[Tensor, " n"]  # one entry per (sample, timestep)


class Algorithm:
    """Base of all policy-gradient algorithms.

    Args:
        schedule: `timestep` steps the optimizer on one timestep of `samples_per_update` samples at a time,
            `trajectory` on all timesteps of them.
        samples_per_update: samples behind one optimizer step; null for all of the iteration.
        inner_epochs: passes over a rollout.
        timestep_fraction: share of the denoising steps that are trained, the noisiest first; the rest are only sampled.
        shuffle_timesteps: an update of schedule `timestep` sees another timestep of each of its samples, as in the
            authors' code, and not one and the same.
        timestep_weighting: how much a step's advantage counts. `uniform` is the policy gradient as it is; its terms
            grow as 1 / sigma_t, so that the last, almost noiseless steps drown the first, which decide the picture.
            `variance` weighs by sigma_t^2 (mean 1), in the spirit of noise-aware weighting (TempFlow-GRPO, 2508.04324).
    """

    uses_critic = False

    def __init__(
        self,
        schedule: Literal["timestep", "trajectory"],
        samples_per_update: int | None,
        inner_epochs: int,
        timestep_weighting: Literal["uniform", "variance"],
        timestep_fraction: float,
        shuffle_timesteps: bool = False,
    ):
        if inner_epochs < 1:
            raise UserError(f"algorithm.inner_epochs={inner_epochs} must be at least 1.")
        if not 0 < timestep_fraction <= 1:
            raise UserError(f"algorithm.timestep_fraction={timestep_fraction} lies outside 0 (exclusive) to 1.")
        self.timestep_fraction, self.shuffle_timesteps = timestep_fraction, shuffle_timesteps
        self.schedule, self.samples_per_update, self.inner_epochs = schedule, samples_per_update, inner_epochs
        self.timestep_weighting = timestep_weighting

    def trained_steps(self, num_steps: int) -> int:
        """How many of a trajectory's steps are trained."""
        return max(1, round(self.timestep_fraction * num_steps))

    def weights(self, step_std: Float[Tensor, " t"]) -> Float[Tensor, " t"]:
        """Factors of the timesteps' advantages, 1 on average."""
        raw = step_std**2 if self.timestep_weighting == "variance" else torch.ones_like(step_std)
        return raw / raw.mean()

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

    def credit(
        self, rewards: Float[Tensor, " b"], step_std: Float[Tensor, " t"], values: Float[Tensor, "b t"] | None
    ) -> Credit:
        """What each step is worth.

        Args:
            rewards: normalised per prompt.
            step_std: standard deviation sigma_t of every trained step.
            values: the critic's, of the states before them.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define credit")

    def policy_loss(self, log_prob: Rows, old_log_prob: Rows, advantage: Rows) -> "PolicyLoss":
        raise NotImplementedError(f"{type(self).__name__} does not define policy_loss")

    def critic_loss(self, value: Rows, old_value: Rows, target: Rows) -> Float[Tensor, ""]:
        raise NotImplementedError(f"{type(self).__name__} has no critic")


@dataclass
class PolicyLoss:
    """A loss and what to watch beside it."""

    loss: Float[Tensor, ""]
    ratio: Rows  # pi_theta / pi_old of each row
    clipped: Rows  # 1 where the clip took the gradient away


def clipped_surrogate(log_prob: Rows, old_log_prob: Rows, advantage: Rows, clip_range: float) -> PolicyLoss:
    """PPO's clipped surrogate (Schulman et al. 2017, eq. 7), as a loss: its negative, averaged over rows."""
    ratio = (log_prob - old_log_prob).exp()
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - clip_range, 1 + clip_range) * advantage)
    out_of_range = torch.where(advantage > 0, ratio > 1 + clip_range, ratio < 1 - clip_range)
    return PolicyLoss(-surrogate.mean(), ratio.detach(), (out_of_range & (advantage != 0)).float())


def clipped_value_loss(value: Rows, old_value: Rows, target: Rows, clip_range: float) -> Float[Tensor, ""]:
    """Half the larger of the squared errors of V and of V kept within `clip_range` of its old value, averaged."""
    near = old_value + (value - old_value).clamp(-clip_range, clip_range)
    return 0.5 * torch.maximum((value - target) ** 2, (near - target) ** 2).mean()
