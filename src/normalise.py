"""Rewards of different prompts on one scale: per-prompt running moments (Black et al. 2024, section 4.1)."""

from collections import defaultdict, deque
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from src.errors import UserError

EPS = 1e-6


class PromptNormaliser:
    """(r - mean) / (std + eps) with moments over the last `buffer` rewards of the same prompt.

    Until a prompt has `min_count` rewards the moments of the whole batch stand in. Population standard deviations.

    Args:
        buffer: rewards of a prompt that are remembered.
        min_count: rewards of a prompt before its own moments count.

    Raises UserError where no prompt would ever have that many.
    """

    def __init__(self, buffer: int = 32, min_count: int = 16):
        if buffer < 2:
            raise UserError(f"normaliser.buffer={buffer} must be at least 2: one reward is its own mean.")
        if not 1 <= min_count <= buffer:
            raise UserError(
                f"normaliser.min_count={min_count} must lie in 1..{buffer}, normaliser.buffer: a prompt never has more "
                "rewards than the buffer holds."
            )
        self.buffer, self.min_count = buffer, min_count
        self.history: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=buffer))

    def __call__(self, rewards: Float[Tensor, " b"], prompts: Sequence[str]) -> Float[Tensor, " b"]:
        """Adds the rewards to the buffers, then normalises them."""
        for prompt, reward in zip(prompts, rewards.tolist(), strict=True):
            self.history[prompt].append(reward)
        batch = rewards.cpu().double().numpy()  # in this order: not every device has float64
        whole = (batch.mean(), batch.std())
        moments = {prompt: self._moments(prompt, whole) for prompt in set(prompts)}
        mean, std = np.array([moments[prompt] for prompt in prompts]).T
        normalised = torch.from_numpy((batch - mean) / (std + EPS))
        return normalised.to(rewards.dtype).to(rewards.device)

    def _moments(self, prompt: str, whole: tuple[float, float]) -> tuple[float, float]:
        if len(self.history[prompt]) < self.min_count:
            return whole
        seen = np.array(self.history[prompt])
        return seen.mean(), seen.std()

    def state_dict(self) -> dict[str, list[float]]:
        """The remembered rewards of every prompt."""
        return {prompt: list(values) for prompt, values in self.history.items()}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        """Of an earlier session; what is remembered now is forgotten."""
        self.history.clear()
        for prompt, values in state.items():
            self.history[prompt].extend(values)


def standardise(values: Float[Tensor, "b t"], over: tuple[int, ...]) -> Float[Tensor, "b t"]:
    """z-scores over the given axes."""
    centred = values - values.mean(over, keepdim=True)
    return centred / (centred.square().mean(over, keepdim=True).sqrt() + EPS)
