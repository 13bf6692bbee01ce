"""D3PO (Yang et al. 2024, arXiv 2311.13231): direct preference optimization of every denoising step.

Eq. 11: L = -log sigmoid(beta [log R_w - log R_l]), R = clip(pi_theta / pi_ref, 1 +- clip_range) of the step that was
sampled, of the preferred trajectory and of the other, step by step. Log-probabilities are means over latent dimensions;
a step out of range has no gradient. The authors' code takes an optimizer step on every pair, here all pairs of an
iteration share one unless `samples_per_update` says less. The authors' pairs start from one x_T (shared_noise), and
their steps weigh alike; timestep_weighting=variance weighs a step's loss by sigma_t^2, so that the last ones do not
outweigh all others.
"""

from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from src.algorithms.base import Loss, PerRow, Step, step_and_log_prob
from src.algorithms.preference import Preference
from src.policy.diffusion import DiffusionPolicy
from src.policy.gaussian import gaussian_log_prob
from src.types import Credit, Rows


class D3PO(Preference):
    """-log sigmoid of beta times the difference of two clipped log-ratios to the reference.

    Args:
        beta: how soon a preference counts as learnt.
        clip_range: of the ratio to the reference.
    """

    needs_reference = True

    def __init__(self, beta: float = 0.1, clip_range: float = 0.1, **schedule: Any):
        super().__init__(**schedule)
        self.beta, self.clip_range = beta, clip_range
        self.step_weights: Float[Tensor, " t"] | None = None  # of each trained step, by timestep_weighting

    def credit(
        self, returns: Float[Tensor, "b t"], step_std: Float[Tensor, " t"], values: Float[Tensor, "b t"] | None
    ) -> Credit:
        self.step_weights = self.weights(step_std)
        return super().credit(returns, step_std, values)

    def loss(self, rows: Rows, policy: DiffusionPolicy) -> Loss:
        won, step = self._log_ratio(rows, policy)
        lost, other = self._log_ratio(rows.partners(), policy)
        margin = won - lost
        accuracy = (margin.detach() > 0).float().mean()
        assert self.step_weights is not None
        weights = self.step_weights.to(margin.device)[rows.slots]
        loss = -(weights * F.logsigmoid(self.beta * margin)).mean()
        return Loss(loss, [step, other], metrics={"preference/accuracy": accuracy})

    def _log_ratio(self, rows: Rows, policy: DiffusionPolicy) -> tuple[PerRow, Step]:
        step, log_prob = step_and_log_prob(rows, policy)
        step.reference_mean = rows.reference_mean
        reference = gaussian_log_prob(rows.x_prev, step.reference_mean, step.std)
        ratio = (log_prob - reference).exp().clamp(1 - self.clip_range, 1 + self.clip_range)
        return ratio.log(), step
