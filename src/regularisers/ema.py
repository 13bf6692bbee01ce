"""An exponential moving average of the weights, evaluated (eval_ema/) and saved (ema/) beside the raw ones.

It changes nothing in training.

theta_ema <- d theta_ema + (1 - d) theta after every `every`-th optimizer step, d = min((1 + s) / (10 + s), decay) after
s steps in all (flow_grpo, DiffusionNFT).
"""

from typing import Any

import torch

from src.errors import UserError
from src.policy.diffusion import DiffusionPolicy
from src.regularisers.base import Regulariser


class EMA(Regulariser):
    """Keeps the average.

    Args:
        decay: its largest; 0.9 averages over some ten of the steps that it takes in.
        every: optimizer steps between two of these; 8 in flow_grpo.
    """

    def __init__(self, decay: float = 0.9, every: int = 1):
        if not 0 <= decay < 1:
            raise UserError(f"regulariser.decay={decay} lies outside 0 to 1 (exclusive).")
        if every < 1:
            raise UserError(f"regulariser.every={every} must be at least 1 optimizer step.")
        self.decay, self.every, self.steps = decay, every, 0

    def begun(self, policy: DiffusionPolicy) -> None:
        self.averaged = [value.detach().clone().to(policy.device) for value in self.averaged or policy.trainable()]

    @torch.no_grad()
    def stepped(self, policy: DiffusionPolicy) -> None:
        assert self.averaged is not None, "it has not begun"
        self.steps += 1
        if self.steps % self.every:
            return
        decay = min((1 + self.steps) / (10 + self.steps), self.decay)
        for average, parameter in zip(self.averaged, policy.trainable(), strict=True):
            average.lerp_(parameter.detach().to(average), 1 - decay)

    def state_dict(self) -> dict[str, Any]:
        return {"averaged": self.averaged, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.averaged, self.steps = state["averaged"], state["steps"]
