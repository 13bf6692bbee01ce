"""A KL penalty in the loss: beta times the exact KL of every row's step, with its own gradient (Flow-GRPO, 2505.05470).

The states are those that were sampled: that where the policy goes changes what later steps cost is left out, as in the
public code.
"""

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from src.algorithms.base import Loss, Step
from src.errors import UserError
from src.policy.diffusion import DiffusionPolicy
from src.policy.gaussian import gaussian_kl
from src.policy.reference import Reference
from src.regularisers.near import NearReference
from src.types import Rows


class KLLoss(NearReference):
    """L + beta times the mean over rows of |mu_theta - mu_ref|^2 / (2 sigma_t^2), in the unit of L.

    Beside a policy gradient the square is a mean over latent dimensions, as log-probabilities are, and a row is a step.
    Beside a reward that is followed through the sampler it is a sum over dimensions, and over the steps that have a
    gradient. So beta means what it means in kl_reward. Losses of pairs and of the forward process have units of their
    own; there the square is a mean, too. GRPO's `ratio=guard` multiplies a step's gradient by sigma_t, and so a nat is
    dearer beside it.
    """

    def loss(self, rows: Rows, loss: Loss, reference: Reference) -> Float[Tensor, ""]:
        return self.beta * self.kl(rows, loss, reference).mean()

    def kl(self, rows: Rows, loss: Loss, reference: Reference) -> Float[Tensor, " n"]:
        """Of each row, over the steps that its loss took: their mean per latent dimension, or their sum."""
        steps = [step for step in loss.steps if (step.std > 0).all()]
        if not steps:
            raise UserError(
                "regulariser: this algorithm's loss takes no step of the policy with noise, whose KL could be counted; "
                "choose regulariser=none or ema, or have all steps draw noise (policy.sde_steps=[0,N])."
            )
        kls = []
        for step in steps:
            base = step.reference_mean
            if base is None:
                base = rows.reference_mean if step.at is None else reference.mean(step.at)
            kl = gaussian_kl(held(step, reference.policy).mean, base, step.std)
            kls.append(kl / base[0].numel() if loss.nat is None else loss.nat * kl)
        total = sum(kls[1:], kls[0])
        return total / len(kls) if loss.nat is None else total


def held(step: Step, policy: DiffusionPolicy) -> Step:
    """The step, from a state that has no gradient: else the KL would have that of the policy's mean in it alone.

    Once more through the network, where the state depends on earlier steps with a gradient; these activations are kept,
    whatever `algorithm.checkpoint_steps` says.
    """
    if step.at is None or not step.at.x_t.requires_grad:
        return step
    at = replace(step.at, x_t=step.at.x_t.detach())
    return Step(*policy.step_distribution(at.x_t, at.t, at.conditioning), at)
