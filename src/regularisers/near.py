"""What penalties on the KL have in common: a coefficient, fixed or adaptive, and a reference that may move."""

from typing import Any, Literal

from src.errors import UserError
from src.policy.reference import Reference
from src.regularisers.base import Regulariser
from src.types import Metrics

MOST = 0.2  # of the relative error of the KL that one update of an adaptive coefficient takes in


class NearReference(Regulariser):
    """Base of KL penalties.

    Args:
        beta: normalised reward (standard deviations) that a nat of KL costs, over all trained steps of a trajectory and
            all latent dimensions; the value at first where it is adaptive. TDPO standardises what is left of rewards
            when V is taken off: beside it the standard deviations are those.
        target: KL that an adaptive beta aims at; null for a fixed one. After every iteration
            beta *= 1 + gain * clip(KL / target - 1, +-0.2) (Ziegler et al. 2019, arXiv 1909.08593, section 2.2).
        unit: what `target` and `move_above` count: `trajectory`, nats of a trajectory's trained steps, or `dimension`,
            the same divided by the number of a latent's dimensions (1,024 on suite=mini, 16,384 of Stable Diffusion at
            512 pixels).
        gain: K_beta of the update.
        move_every: iterations after which the reference becomes the policy as it then is; null: never.
        move_above: KL above which it does so too; null: never.
    """

    needs_reference = True

    def __init__(
        self,
        beta: float,
        target: float | None = None,
        unit: Literal["trajectory", "dimension"] = "trajectory",
        gain: float = 0.1,
        move_every: int | None = None,
        move_above: float | None = None,
    ):
        for name, value in {"beta": beta, "gain": gain, "move_above": move_above}.items():
            if value is not None and value < 0:
                raise UserError(f"regulariser.{name}={value} must not be negative.")
        if target is not None and target <= 0:
            raise UserError(f"regulariser.target={target} must be positive, or null for a fixed beta.")
        if move_every is not None and move_every < 1:
            raise UserError(f"regulariser.move_every={move_every} must be at least 1 iteration, or null for never.")
        self.beta, self.target, self.unit, self.gain = beta, target, unit, gain
        self.move_every, self.move_above, self.moved_at = move_every, move_above, 0

    def after(self, kl: float | None, dimensions: int, reference: Reference, iteration: int) -> Metrics:
        assert kl is not None
        used, kl = self.beta, kl / (dimensions if self.unit == "dimension" else 1)
        if self.target is not None:
            self.beta *= 1 + self.gain * min(MOST, max(-MOST, kl / self.target - 1))
        due = self.move_every is not None and iteration - self.moved_at >= self.move_every
        moved = due or (self.move_above is not None and kl > self.move_above)
        if moved:
            reference.move_here()
            self.moved_at = iteration
        return {"regulariser/beta": used, "regulariser/moved": float(moved)}

    def unmet(self, iterations: int) -> str | None:
        if self.move_every is None or self.moved_at or iterations >= self.move_every:
            return None
        return (
            f"the reference has not moved: regulariser.move_every={self.move_every}, iterations={iterations}; "
            "with regulariser.move_every=1 it moves after every iteration."
        )

    def state_dict(self) -> dict[str, Any]:
        return {"beta": self.beta, "moved_at": self.moved_at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.beta, self.moved_at = state["beta"], state["moved_at"]
