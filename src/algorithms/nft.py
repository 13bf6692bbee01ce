"""DiffusionNFT (Zheng et al. 2025, arXiv 2509.16117): negative-aware fine-tuning on the forward process.

Pictures are sampled from v_old and noised again. A good one (r near 1) draws v towards it, a bad one pushes v away, by
two implicit policies on either side of v_old (eq. 5):  v+- = v_old +- beta (v - v_old),
    L = r |v+ - u|^2 + (1 - r) |v- - u|^2,   r = 1/2 + clip(A / 5, +-1) / 2,
A the reward within its group. As in the authors' code the squares are taken of the predicted x_0, which is affine in
the network's output in every parametrisation, each divided by its own mean absolute error (detached), and the loss is
multiplied by 5 / beta, so that at v = v_old its gradient is that of A times flow matching, whatever beta. v_old follows
v after every iteration: v_old <- eta v_old + (1 - eta) v, eta = min(rise * optimizer steps, most), a copy at first.

Their samples are drawn without guidance (guidance=1) and without noise in the steps; here as the policy is set.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from src.algorithms.base import Algorithm, Loss, PerRow
from src.algorithms.forward import noised, prediction
from src.algorithms.grpo import group_advantages
from src.normalise import PromptNormaliser
from src.policy.diffusion import DiffusionPolicy
from src.types import Credit, Metrics, Rows

LEAST_ERROR = 1e-5


class NFT(Algorithm):
    """Draws the policy towards good samples and away from bad ones.

    Args:
        beta: how far v+ and v- lie on either side of v_old.
        advantage_clip: of the advantages, in standard deviations.
        rise, most: of eta.
        std: of a group's rewards or of all (`batch`), as in GRPO. eps: added to it.
    """

    needs_groups = True

    def __init__(
        self,
        beta: float = 1.0,
        advantage_clip: float = 5.0,
        rise: float = 0.001,
        most: float = 0.5,
        std: Literal["group", "batch", "none"] = "batch",
        eps: float = 1e-4,
        **schedule: Any,
    ):
        super().__init__(**schedule)
        self.beta, self.advantage_clip, self.std, self.eps = beta, advantage_clip, std, eps
        self.rise, self.most = rise, most
        self.old: list[Tensor] | None = None  # trained parameters of v_old; None while they are v's

    def state_dict(self) -> dict[str, Any]:
        return {"old": self.old}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.old = state["old"]

    def sampling(self, policy: DiffusionPolicy) -> AbstractContextManager:
        if self.old is None:
            self.old = [parameter.detach().clone() for parameter in policy.trainable()]
        self.old = [value.to(policy.device) for value in self.old]
        return policy.holding(self.old)

    def after(self, policy: DiffusionPolicy, updates: int) -> Metrics:
        assert self.old is not None
        eta = min(self.rise * updates, self.most)
        for value, parameter in zip(self.old, policy.trainable(), strict=True):
            value.lerp_(parameter.detach(), 1 - eta)
        return {"nft/eta": eta}

    def normalise(
        self, rewards: Float[Tensor, " b"], prompts: Sequence[str], running: PromptNormaliser
    ) -> Float[Tensor, " b"]:
        return group_advantages(rewards, prompts, self.std, self.eps)[0]

    def credit(
        self, returns: Float[Tensor, "b t"], step_std: Float[Tensor, " t"], values: Float[Tensor, "b t"] | None
    ) -> Credit:
        whole = returns[:, :1].clamp(-self.advantage_clip, self.advantage_clip)  # of the trajectory
        return Credit(whole.expand_as(returns))

    def loss(self, rows: Rows, policy: DiffusionPolicy) -> Loss:
        at, _ = noised(rows, policy)
        output, step = prediction(policy, at)
        clean = policy.predicted_clean(output, at.x_t, at.t)
        with torch.no_grad(), policy.unguided(), policy.holding(self.old) if self.old is not None else nullcontext():
            old = policy.predicted_clean(policy.predict(at.x_t, at.t, at.conditioning), at.x_t, at.t)
        ahead, behind = (old + sign * self.beta * (clean - old) for sign in (1, -1))
        r = ((rows.advantage / self.advantage_clip + 1) / 2).clamp(0, 1)  # whatever a regulariser made of advantages
        errors = r * relative_error(ahead, rows.x_0) + (1 - r) * relative_error(behind, rows.x_0)
        return Loss(self.advantage_clip / self.beta * errors.mean(), [step])


def relative_error(predicted: Float[Tensor, "n c h w"], x_0: Float[Tensor, "n c h w"]) -> PerRow:
    """Mean squared error over dimensions, divided by the mean absolute error, which has no gradient."""
    error = predicted - x_0
    weight = error.detach().abs().mean((1, 2, 3)).clamp(min=LEAST_ERROR)
    return error.square().mean((1, 2, 3)) / weight
