"""Diffusion-DPO (Wallace et al. 2023, arXiv 2311.12908) on the policy's own samples, the reward choosing the pairs.

Eq. 14: L = -log sigmoid(-(beta / 2) [(e_w - e_w^ref) - (e_l - e_l^ref)]), e the squared error of the predicted noise on
x_0 noised to a timestep, averaged over dimensions; winner and loser share timestep and noise. The timesteps are the
sampler's own.
"""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from src.algorithms.base import Loss, PerRow, Step
from src.algorithms.forward import noised, prediction
from src.algorithms.preference import Preference
from src.policy.diffusion import DiffusionPolicy
from src.types import Rows, States


class OnlineDPO(Preference):
    """-log sigmoid of how much better than the reference the policy has become at the winner than at the loser.

    Args:
        beta: 5,000 in the paper, for errors averaged over dimensions, of which Stable Diffusion has 16,384: in
            proportion with fewer of them. About the inverse of the KL that is allowed.
    """

    def __init__(self, beta: float = 5000.0, **schedule: Any):
        super().__init__(**schedule)
        self.beta = beta

    def loss(self, rows: Rows, policy: DiffusionPolicy) -> Loss:
        gains, steps = [], []
        for side in (rows, rows.partners()):
            at, noise = noised(side, policy, noise_of=rows)
            gain, step = self._gain(at, noise, rows, policy)
            gains.append(gain)
            steps.append(step)
        margin = gains[0] - gains[1]
        accuracy = (margin.detach() > 0).float().mean()
        return Loss(-F.logsigmoid(self.beta / 2 * margin).mean(), steps, metrics={"preference/accuracy": accuracy})

    def _gain(
        self, at: States, noise: Float[Tensor, "n c h w"], rows: Rows, policy: DiffusionPolicy
    ) -> tuple[PerRow, Step]:
        """By how much the policy's error is smaller than the reference's, and the policy's step."""
        output, step = prediction(policy, at)
        with torch.no_grad(), rows.reference.in_place(), policy.unguided():
            reference = policy.predict(at.x_t, at.t, at.conditioning)
        step = replace(step, reference_mean=policy.step_of(reference, at.x_t, at.t)[0])
        predicted = [policy.predicted_noise(each, at.x_t, at.t) for each in (output, reference)]
        error, reference_error = ((each - noise).square().mean((1, 2, 3)) for each in predicted)
        return reference_error - error, step
