"""Metrics of one iteration, from tensors the finetuner has at hand."""

import torch
from jaxtyping import Float
from torch import Tensor

from src.resets.ops import Mask, Scores
from src.types import Credit, Metrics

DORMANCY_THRESHOLDS = (0.0, 0.025, 0.1)


def reward_metrics(name: str, rewards: Float[Tensor, " b"]) -> Metrics:
    return {f"reward/{name}/mean": rewards.mean().item(), f"reward/{name}/std": rewards.std(correction=0).item()}


def explained_variance(values: Float[Tensor, "..."], returns: Float[Tensor, "..."]) -> float:
    """1 - Var(G - V) / Var(G); 0 where the returns do not vary."""
    variance = returns.var(correction=0).item()
    return 1 - (returns - values).var(correction=0).item() / variance if variance > 0 else 0.0


def critic_metrics(credit: Credit) -> Metrics:
    advantage = {"policy/advantage_std": credit.advantages.std(correction=0).item()}
    if credit.values is None or credit.returns is None:
        return advantage
    return advantage | {
        "critic/explained_variance": explained_variance(credit.values, credit.returns),
        "critic/value_mean": credit.values.mean().item(),
    }


def neuron_metrics(scores: list[Scores]) -> Metrics:
    """Share of hidden neurons that are dormant at each threshold."""
    every = torch.cat(scores)
    return {f"neurons/dormant_{tau:g}": (every <= tau).float().mean().item() for tau in DORMANCY_THRESHOLDS}


def reset_metrics(masks: list[Mask] | None) -> Metrics:
    """Share of hidden neurons reset after this iteration; 0 where none was due."""
    return {"reset/share": torch.cat(masks).float().mean().item() if masks else 0.0}
