"""What methods that back-propagate the reward have in common: a part of the sampler with a gradient, then the reward's.

The rollout gives the state that a method starts from, and the noise of each step; the sampler's last steps are run once
more from there, reparametrised: x_{t-1} = mean(x_t) + sigma_t z with the z that was drawn. A row is a whole sample.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from src.algorithms.base import Algorithm, Loss, Step
from src.normalise import EPS, PromptNormaliser
from src.policy.diffusion import DiffusionPolicy
from src.types import Credit, Rows, States


class ThroughReward(Algorithm):
    """Base: L = mean over pictures of -(r - centre) / sd, the mean and standard deviation of the first rollout's.

    So that learning rates and a regulariser's beta mean the same whatever unit a reward has.

    Args:
        checkpoint_steps: a step's activations are computed again in the backward pass, not kept.
    """

    uses_returns = weighs_rows = False
    scale = 1.0  # of the reward in the loss
    whole_trajectory = True

    def __init__(self, checkpoint_steps: bool = False, **schedule: Any):
        super().__init__(**schedule)
        self.gradients_a_sample = self.inner_epochs
        self.checkpoint_steps = checkpoint_steps
        self.moments: tuple[float, float] | None = None  # of the reward on the base's pictures

    def state_dict(self) -> dict[str, Any]:
        return {"moments": self.moments}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.moments = state["moments"]

    def normalise(
        self, rewards: Float[Tensor, " b"], prompts: Sequence[str], running: PromptNormaliser
    ) -> Float[Tensor, " b"]:
        self.moments = self.moments or (rewards.mean().item(), rewards.std(correction=0).item() + EPS)
        return self.standardised(rewards)

    def standardised(self, rewards: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Rewards in standard deviations from the mean of the first iteration's."""
        assert self.moments is not None, "no reward has been seen yet"
        return (rewards - self.moments[0]) / self.moments[1]

    def credit(
        self, returns: Float[Tensor, "b t"], step_std: Float[Tensor, " t"], values: Float[Tensor, "b t"] | None
    ) -> Credit:
        return Credit(torch.zeros_like(returns))

    def updates(self, b: int, t: int, *keys: int) -> Iterator[tuple[Int[Tensor, " n"], Int[Tensor, " n"]]]:
        """Each sample once a pass."""
        yield from super().updates(b, 1, *keys)

    def loss(self, rows: Rows, policy: DiffusionPolicy) -> Loss:
        latents, steps = self.denoise(rows, policy)
        prompts = rows.prompts * (len(latents) // len(rows))
        scores = rows.reward.score(policy.decode(latents), prompts, differentiable=True)
        return Loss(self.cost(self.standardised(scores)).mean(), steps, nat=self.scale)

    def cost(self, rewards: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Of pictures with these standardised rewards."""
        return -rewards

    def denoise(self, rows: Rows, policy: DiffusionPolicy) -> tuple[Float[Tensor, "n c h w"], list[Step]]:
        """Latents of pictures, with a gradient in the policy's parameters, and the steps that have one."""
        raise NotImplementedError(f"{type(self).__name__} does not define denoise")

    def rerun(
        self, rows: Rows, policy: DiffusionPolicy, first: int, kept: Sequence[bool]
    ) -> tuple[Float[Tensor, "n c h w"], list[Step]]:
        """x_0 from the rollout's state before step `first`, over the steps from there on.

        `kept` says of each of these whether the network's output has a gradient; without one it passes the state's on.
        """
        noise, x_t, steps = policy.noise(rows.seeds), rows.rollout.latents[rows.samples, first], []
        for k, keep in zip(range(first, policy.num_steps), kept, strict=True):
            at = States(x_t, policy.timesteps[k].expand(len(rows)), rows.conditioning)
            output = self.predict(policy, at) if keep else self._without_gradient(policy, at)
            mean, std = policy.step_of(output, at.x_t, at.t)
            if keep:
                steps.append(Step(mean, std, at))
            x_t = mean + std * noise[:, k + 1]
        return x_t, steps

    def predict(self, policy: DiffusionPolicy, at: States) -> Float[Tensor, "n c h w"]:
        """The policy's output at states; with `checkpoint_steps` its activations are not kept."""
        if not self.checkpoint_steps:
            return policy.predict(at.x_t, at.t, at.conditioning)
        return checkpoint(policy.predict, at.x_t, at.t, at.conditioning, use_reentrant=False)

    @torch.no_grad()
    def _without_gradient(self, policy: DiffusionPolicy, at: States) -> Float[Tensor, "n c h w"]:
        return policy.predict(at.x_t, at.t, at.conditioning)
