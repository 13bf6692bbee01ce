"""Ensembles of reward models (Coste et al. 2023, arXiv 2310.02743; Eisenstein et al. 2023, arXiv 2312.09244)."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from src.errors import UserError
from src.rewards.base import Images, RewardModel


class EnsembleReward(RewardModel):
    """One reward of several, each first brought to mean 0 and standard deviation 1 on the base model's pictures.

    Args:
        members: any reward models.
        combine: `mean`; `worst` = min_k r_k (WCO); `uncertainty` = mean - penalty * var (UWO); `sum` by `weights`; all
            in base sd.
        penalty: lambda of UWO, times the population's variance; 0.1 of three members' sample variance, which
            the authors trained with, is 0.15. Their best of n has 0.5.
        weights: of `sum`; null for 1 each.
        centres, scales: mean and standard deviation of each member on the base's pictures.
    """

    weights: Tensor
    centres: Tensor
    scales: Tensor

    def __init__(
        self,
        members: list[RewardModel],
        combine: Literal["mean", "worst", "uncertainty", "sum"],
        centres: list[float],
        scales: list[float],
        penalty: float = 0.15,
        weights: list[float] | None = None,
    ):
        super().__init__()
        if len(members) < 2 or not len(members) == len(centres) == len(scales):
            raise UserError("an ensemble needs two members or more, each with a centre and a scale.")
        if min(scales) <= 0:
            raise UserError(f"ensemble scales={scales} must be positive.")
        if weights is not None and len(weights) != len(members):
            raise UserError(f"ensemble weights={weights} must be as many as its {len(members)} members.")
        self.members = torch.nn.ModuleList(members)
        self.combine, self.penalty, self.queries = combine, penalty, len(members)
        self.register_buffer("weights", torch.tensor(weights or [1.0] * len(members))[:, None], persistent=False)
        self.register_buffer("centres", torch.tensor(centres)[:, None], persistent=False)
        self.register_buffer("scales", torch.tensor(scales)[:, None], persistent=False)
        self.embed_dim = members[0].embed_dim
        self.max_tokens = min((member.max_tokens for member in members if member.max_tokens), default=None)

    def embed_images(self, images: Images) -> Float[Tensor, "b d"]:
        """Features of the first member's tower."""
        return self.members[0].embed_images(images)  # type: ignore[operator]

    def too_long(self, prompts: Sequence[str]) -> list[str]:
        cut = {prompt for member in self.members for prompt in member.too_long(prompts)}  # type: ignore[operator]
        return [prompt for prompt in prompts if prompt in cut]

    def standardised(self, images: Images, prompts: Sequence[str]) -> Float[Tensor, "k b"]:
        """Each member's scores less its centre, in its scale."""
        # by _score, in batches of the member's own size
        scores = torch.stack([member._score(images, prompts) for member in self.members])  # type: ignore[operator]
        return (scores - self.centres) / self.scales

    def forward(self, images: Images, prompts: Sequence[str]) -> Float[Tensor, " b"]:
        scores = self.standardised(images, prompts)
        return (self.weights * scores).sum(0) if self.combine == "sum" else combined(scores, self.combine, self.penalty)


def combined(scores: Float[Tensor, "k b"], combine: str, penalty: float) -> Float[Tensor, " b"]:
    """Coste et al. 2023, section 3: mean, eq. 4 (WCO) and eq. 5 (UWO); the variance is the population's."""
    if combine == "worst":
        return scores.amin(0)
    mean = scores.mean(0)
    return mean if combine == "mean" else mean - penalty * scores.var(0, correction=0)
