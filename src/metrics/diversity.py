"""How different the pictures of one prompt are from each other, and all of them from the base model's."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from src.errors import UserError

Images = Float[Tensor, "b 3 h w"]
Network = Literal["alex", "vgg", "squeeze"]
Features = Float[Tensor, "b d"]  # unit length


def vendi_score(features: Features) -> Float[Tensor, ""]:
    """Effective number of different pictures: exp of the entropy of the eigenvalues of K / n, K their cosines.

    Friedman & Dieng 2023 (arXiv 2210.02410), eq. 1. From 1, all alike, to n, all orthogonal.
    """
    eigenvalues = torch.linalg.eigvalsh((features @ features.T).double() / len(features)).clamp(min=0)
    return torch.special.entr(eigenvalues).sum().exp()


class WithinPromptDiversity(Metric):
    """Mean pairwise cosine distance and Vendi score within prompts, averaged over prompts with two pictures or more."""

    features: list[Tensor] | Tensor
    prompts: list[Tensor] | Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("features", [], dist_reduce_fx="cat")
        self.add_state("prompts", [], dist_reduce_fx="cat")

    def update(self, features: Features, prompts: Int[Tensor, " b"]) -> None:
        assert isinstance(self.features, list) and isinstance(self.prompts, list)
        self.features.append(features)
        self.prompts.append(prompts)

    def compute(self) -> dict[str, float]:
        features, prompts = dim_zero_cat(self.features), dim_zero_cat(self.prompts)
        distances, scores = [], []
        for prompt in prompts.unique():
            own = features[prompts == prompt]
            if len(own) > 1:
                similarity = own @ own.T
                distances.append(1 - similarity[~torch.eye(len(own), dtype=torch.bool, device=own.device)].mean())
                scores.append(vendi_score(own))
        if not distances:
            return {"distance": 0.0, "vendi": 1.0}
        return {"distance": torch.stack(distances).mean().item(), "vendi": torch.stack(scores).mean().item()}


class DriftFromBase(Metric):
    """Mean cosine distance of pictures from the base model's of the same prompt and seed."""

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, features: Features, base_features: Features) -> None:
        self.total += (1 - (features * base_features).sum(1)).double().sum()
        self.count += len(features)

    def compute(self) -> float:
        return (self.total / self.count.clamp(min=1)).item()


def lpips(network: Network) -> Metric:
    """LPIPS (Zhang et al. 2018, arXiv 1801.03924) of pairs of pictures in [0, 1], by torchmetrics.

    Raises UserError where torchvision, or the weights of the `network`, are missing.
    """
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    try:
        return LearnedPerceptualImagePatchSimilarity(network, reduction="none", normalize=True)
    except ModuleNotFoundError:
        raise UserError(
            "evaluation.lpips_network needs torchvision: install it beside your torch, or leave it null."
        ) from None
    except (ValueError, OSError) as error:
        raise UserError(f"evaluation.lpips_network={network}: {error}.") from None


def lpips_within(images: Images, prompts: list[str], distance: Callable[[Images, Images], Tensor]) -> float:
    """Mean distance of the pairs of pictures of a prompt, averaged over prompts with two pictures or more; else 0."""
    means = []
    for prompt in dict.fromkeys(prompts):
        own = images[[other == prompt for other in prompts]]
        if len(own) > 1:
            first, second = torch.triu_indices(len(own), len(own), 1)
            means.append(distance(own[first], own[second]).mean())
    return torch.stack(means).mean().item() if means else 0.0
