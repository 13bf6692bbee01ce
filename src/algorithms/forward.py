"""The forward process, where methods need it: x_t of a sampled picture, and what the network makes of it.

The network predicts what was added to a picture of a prompt; classifier-free guidance, which draws its output beyond
that, is left out here, as in the training of these networks, whatever the rollout was sampled with.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from src.algorithms.base import Step
from src.policy.diffusion import DiffusionPolicy
from src.seeding import FORWARD_STREAM, generator_of
from src.types import Rows, States


def noised(
    rows: Rows, policy: DiffusionPolicy, noise_of: Rows | None = None
) -> tuple[States, Float[Tensor, "n c h w"]]:
    """x_0 of the rows at the noise level of their slots' timesteps, and the noise.

    The noise is a function of sample, slot and optimizer step; `noise_of` are rows that lend theirs.
    """
    drawn, shape = noise_of or rows, rows.x_0[0].shape
    keys = zip(drawn.seeds, drawn.slots.tolist(), strict=True)
    draws = [torch.randn(shape, generator=generator_of(seed, slot, drawn.draw, FORWARD_STREAM)) for seed, slot in keys]
    noise = torch.stack(draws).to(rows.x_0)
    return States(policy.noised(rows.x_0, rows.t, noise), rows.t, rows.conditioning, guided=False), noise


def prediction(policy: DiffusionPolicy, at: States) -> tuple[Float[Tensor, "n c h w"], Step]:
    """The network's output at these states, and the step that a sampler would take with it."""
    with policy.unguided():
        output = policy.predict(at.x_t, at.t, at.conditioning)
    return output, Step(*policy.step_of(output, at.x_t, at.t), at)
