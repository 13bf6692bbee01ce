"""A sampler: the Markov chain by which a network's outputs become pictures, each of its steps a Gaussian.

Where a step draws no noise it has no density: it is sampled and not trained.
"""

from typing import Any

import torch
from jaxtyping import Int, Num
from torch import Tensor

from src.errors import UserError
from src.policy.gaussian import Latents, PerSample, Std

Times = Num[Tensor, " b"]
Window = int | list[int] | None
Scheduler = Any  # of diffusers


class Sampler:
    """Base of all samplers.

    Args:
        timesteps: of a trajectory, descending, as the network is told them.
        level: how much noise the stochastic steps draw; 0 for none. What it means is the sampler's own affair.
        count: T, how many timesteps the network was trained with.
        noisy: how many steps, from the first on, draw noise where no window says otherwise.
        able: how many can.
    """

    def __init__(self, timesteps: Num[Tensor, " t"], level: float, count: int, noisy: int, able: int):
        self.timesteps, self.level, self.count, self.noisy, self.able = timesteps, level, count, noisy, able
        self.stochastic = range(noisy if level > 0 else 0)

    def __len__(self) -> int:
        return len(self.timesteps)

    def narrow(self, window: Window, seed: int = 0) -> None:
        """Only these steps draw noise from now on: [first, last + 1], or so many at a place that the seed decides.

        Raises UserError on a window that holds no step, or more than can draw noise.
        """
        if window is None or self.level <= 0:
            return
        if isinstance(window, int):
            if not 1 <= window <= self.noisy:
                raise UserError(f"policy.sde_steps={window}: choose 1 to {self.noisy} of {len(self)} steps.")
            rng = torch.Generator().manual_seed(seed)
            first = int(torch.randint(0, self.noisy - window + 1, (1,), generator=rng))
            self.stochastic = range(first, first + window)
            return
        if len(window) != 2 or not 0 <= window[0] < window[1] <= len(self):
            raise UserError(
                f"policy.sde_steps={window}: give [first, end] with 0 <= first < end <= {len(self)}, the end left out, "
                "or one number, how many."
            )
        if window[1] > self.able:
            raise UserError(
                f"policy.sde_steps={window}: the last step of this sampler can draw no noise; end before it."
            )
        self.stochastic = range(*window)

    def slots(self, t: Times) -> Int[Tensor, " b"]:
        """Which step begins at each of these timesteps."""
        return (t[:, None] == self.timesteps.to(t.device)).int().argmax(1)

    def levels(self, t: Times) -> float | PerSample:
        """The noise level of the steps from these timesteps; one number where all steps share it."""
        if len(self.stochastic) in (0, len(self)):
            return self.level if self.stochastic else 0.0
        noisy = torch.zeros(len(self), device=t.device)
        noisy[self.stochastic.start : self.stochastic.stop] = self.level
        return noisy[self.slots(t)]

    # ------------------------------------------------------------------------------------ what a sampler must define

    def step(self, output: Latents, x_t: Latents, t: Times) -> tuple[Latents, Std]:
        """Mean and standard deviation of the next state, float32."""
        raise NotImplementedError(f"{type(self).__name__} does not define step")

    def clean(self, output: Latents, x_t: Latents, t: Times) -> Latents:
        """The x_0 that the network's output stands for."""
        raise NotImplementedError(f"{type(self).__name__} does not define clean")

    def noise(self, output: Latents, x_t: Latents, t: Times) -> Latents:
        """The noise that it stands for."""
        raise NotImplementedError(f"{type(self).__name__} does not define noise")

    def noised(self, x_0: Latents, t: Times, noise: Latents) -> Latents:
        """x_t of the forward process."""
        raise NotImplementedError(f"{type(self).__name__} does not define noised")

    @property
    def prediction_type(self) -> str:
        """What the network gives, as diffusers calls it."""
        raise NotImplementedError(f"{type(self).__name__} does not define prediction_type")

    # --------------------------------------------------------------------------------------------- what follows from it

    def stds(self, t: Times) -> PerSample:
        """Standard deviations of the steps from these timesteps; they depend on nothing else."""
        zeros = torch.zeros(len(t), 1, 1, 1, device=t.device)
        return self.step(zeros, zeros, t)[1].flatten()

    def gains(self, t: Times) -> PerSample:
        """|d mean / d output| of these steps: how far the network's output moves the next state."""
        zeros = torch.zeros(len(t), 1, 1, 1, device=t.device)
        still, moved = (self.step(output, zeros, t)[0] for output in (zeros, zeros + 1))
        return (moved - still).abs().flatten()


def refuse_level(level: float) -> None:
    """Raises UserError on a level at which no step has a density."""
    if level <= 0:
        raise UserError(f"policy.eta={level}: a step has a log-probability only when eta is positive.")
