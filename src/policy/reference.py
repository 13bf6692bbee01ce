"""What a policy is kept near: the base it started from or, once it has been moved, the policy of an earlier moment."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor

from src.policy.diffusion import DiffusionPolicy
from src.types import Rollout, States


class Reference:
    """The reference of a policy; `weights` are its trained parameters, None while it is the base."""

    def __init__(self, policy: DiffusionPolicy):
        self.policy = policy
        self.weights: list[Tensor] | None = None

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The policy is its reference for as long as the context lasts."""
        with self.policy.as_base() if self.weights is None else self.policy.holding(self.weights):
            yield

    @torch.no_grad()
    def means(self, rollout: Rollout) -> Float[Tensor, "b t c h w"]:
        """Of its steps from the states that a rollout visited, in the batches that sampled them."""
        told = rollout.conditioning or self.policy.encode_prompts(rollout.prompts)
        columns = []
        with self.in_place():
            for j, t in enumerate(rollout.timesteps):
                parts = torch.arange(len(rollout)).split(self.policy.sampling_batch)
                steps = [
                    self.policy.step_distribution(rollout.latents[i, j], t.expand(len(i)), told.of(i)) for i in parts
                ]
                columns.append(torch.cat([mean for mean, _ in steps]))
        return torch.stack(columns, 1)

    @torch.no_grad()
    def mean(self, at: States) -> Float[Tensor, "n c h w"]:
        """Of its step from other states."""
        with self.in_place(), nullcontext() if at.guided else self.policy.unguided():
            return self.policy.step_distribution(at.x_t, at.t, at.conditioning)[0]

    def move_here(self) -> None:
        """From now on the reference is the policy as it is now."""
        self.weights = [parameter.detach().clone() for parameter in self.policy.trainable()]

    def state_dict(self) -> list[Tensor] | None:
        """Its weights, in the order of `trainable`; None while it is the base."""
        return self.weights

    def load_state_dict(self, state: list[Tensor] | None) -> None:
        """Of an earlier session; None for the base."""
        self.weights = None if state is None else [value.to(self.policy.device) for value in state]
