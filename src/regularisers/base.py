"""What keeps a policy near its reference: a part of every step's return, or of every row's loss."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from src.algorithms.base import Loss
from src.policy.diffusion import DiffusionPolicy
from src.policy.gaussian import gaussian_kl
from src.policy.reference import Reference
from src.ranks import Ranks
from src.types import Credit, Metrics, Rollout, Rows


class Regulariser:
    """Base: nothing is asked of the reference, and nothing is added."""

    needs_reference = False
    needs_returns = False  # has its part of what a step is worth: a penalty
    needs_credit = False  # weighs what a row is worth
    extra_queries = 0  # scores of other rewards that it asks for, a picture
    averaged: list[Tensor] | None = None  # trained parameters that are evaluated and saved beside the raw ones

    def begun(self, policy: DiffusionPolicy) -> None:
        """Called before the first iteration of a session, when an earlier one's state is there."""

    def look(self, rollout: Rollout, rewards: Float[Tensor, " b"], prompts: Sequence[str], ranks: Ranks) -> Metrics:
        """At a rollout, this rank's, when its rewards are known, all ranks'."""
        return {}

    def penalty(self, rollout: Rollout, step_std: Float[Tensor, " t"], ranks: Ranks) -> Float[Tensor, "b t"] | None:
        """What comes off the worth of each step of all ranks' samples, in normalised reward; `rollout` is a rank's."""
        return None

    def credited(self, credit: Credit) -> Credit:
        """All ranks' credit, as this would have it."""
        return credit

    def loss(self, rows: Rows, loss: Loss, reference: Reference) -> Float[Tensor, ""] | None:
        """What rows cost beside the algorithm's loss of them, averaged over them; None for nothing."""
        return None

    def stepped(self, policy: DiffusionPolicy) -> None:
        """Called after every optimizer step."""

    def after(self, kl: float | None, dimensions: int, reference: Reference, iteration: int) -> Metrics:
        """Called at the end of an iteration, counted from 1.

        Args:
            kl: of its rollout from the reference, nats a trajectory; None where nobody asked.
            dimensions: of a latent.
            reference: what the policy is kept near; it may be moved.
            iteration: that has ended.
        """
        return {}

    def unmet(self, iterations: int) -> str | None:
        """Why something that it was to do at times has not been done in so many iterations of a run, if so."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Of an earlier session."""


def trajectory_kl(rollout: Rollout, step_std: Float[Tensor, " t"]) -> Float[Tensor, " b"]:
    """KL of the policy that sampled from the reference, exact in each step, summed over steps that draw noise: nats."""
    assert rollout.means is not None and rollout.reference_means is not None
    noisy = step_std > 0
    means, references = (table[:, noisy] for table in (rollout.means, rollout.reference_means))
    return gaussian_kl(means, references, step_std[noisy].view(1, -1, 1, 1, 1)).sum(1)


def log_ratios(rollout: Rollout, step_std: Float[Tensor, " t"]) -> Float[Tensor, "b t"]:
    """log p(x_{t-1} | x_t) - log p_ref(x_{t-1} | x_t) of every step that was sampled, summed over dimensions: nats.

    As |x - mu_ref|^2 - |x - mu|^2 = 2 (mu - mu_ref) . (x - (mu + mu_ref) / 2): no difference of large numbers.
    """
    assert rollout.means is not None and rollout.reference_means is not None
    apart = rollout.means - rollout.reference_means
    middle = (rollout.means + rollout.reference_means) / 2
    return (apart * (rollout.latents[:, 1:] - middle)).sum((-3, -2, -1)) / step_std.square()
