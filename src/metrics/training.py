"""Metrics of one iteration, from tensors the finetuner has at hand."""

from collections import defaultdict
from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from src.ranks import Ranks
from src.resets.ops import Mask, Scores, overlap
from src.types import Credit, Metrics

DORMANCY_THRESHOLDS = (0.0, 0.025, 0.1)


def reward_metrics(name: str, rewards: Float[Tensor, " b"]) -> Metrics:
    """Mean and standard deviation of the raw reward over an iteration's samples."""
    return {f"reward/{name}/mean": rewards.mean().item(), f"reward/{name}/std": rewards.std(correction=0).item()}


def explained_variance(values: Float[Tensor, "..."], returns: Float[Tensor, "..."]) -> float:
    """1 - Var(G - V) / Var(G); 0 where the returns do not vary."""
    variance = returns.var(correction=0).item()
    return 1 - (returns - values).var(correction=0).item() / variance if variance > 0 else 0.0


def critic_metrics(credit: Credit) -> Metrics:
    """Spread of the advantages and, of a critic, how well its values foretold the returns: in all, and by step."""
    advantage = {"policy/advantage_std": credit.advantages.std(correction=0).item()}
    if credit.values is None or credit.returns is None:
        return advantage
    by_step = [explained_variance(v, g) for v, g in zip(credit.values.T, credit.returns.T, strict=True)]
    return (
        advantage
        | {
            "critic/explained_variance": explained_variance(credit.values, credit.returns),
            "critic/value_mean": credit.values.mean().item(),
            "critic/value_std": credit.values.std(correction=0).item(),
        }
        | {f"critic/explained_variance/step_{k}": value for k, value in enumerate(by_step)}
    )


class RatioStatistics:
    """Importance ratios and clipping of one iteration's update, over all its rows and by denoising step."""

    def __init__(self, num_steps: int, device: torch.device):
        self.sums = torch.zeros(4, num_steps, device=device)  # rows, ratio - 1, its square, clipped rows

    def update(self, slots: Int[Tensor, " n"], ratio: Float[Tensor, " n"], clipped: Float[Tensor, " n"]) -> None:
        """Adds rows, by their timestep slots; `clipped` is 1 where the loss took the clipped ratio."""
        off = ratio - 1  # tiny: summing ratios themselves would round their spread away
        self.sums.index_add_(1, slots.to(off.device), torch.stack([torch.ones_like(off), off, off**2, clipped]))

    def metrics(self) -> Metrics:
        """Mean and standard deviation of the ratio, and clip fraction; then the same of each step. {} without rows."""
        if not self.sums[0].any():
            return {}
        values = {f"policy/{name}": value.item() for name, value in _ratio_moments(self.sums.sum(1)).items()}
        for name, by_step in _ratio_moments(self.sums).items():
            seen = zip(by_step.tolist(), self.sums[0].tolist(), strict=True)  # of an update that took only some steps
            values |= {f"policy/{name}/step_{k}": value for k, (value, rows) in enumerate(seen) if rows}
        return values


class UpdateTally:
    """What an iteration's optimizer steps came to: means of losses, gradient norms and ratios."""

    def __init__(self, num_steps: int, device: torch.device):
        self.steps = 0
        self.ratios = RatioStatistics(num_steps, device)
        self._sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=device))
        self._norms: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=device))
        self._by_step: dict[int, list[Tensor]] = defaultdict(list)  # gradient norms of the policy

    def add(self, share: float, values: Mapping[str, Float[Tensor, ""]]) -> None:
        """Means over a share of an optimizer step's rows."""
        for name, value in values.items():
            self._sums[name] += share * value.detach()

    def count_step(self, norms: Mapping[str, Float[Tensor, ""]], slot: int | None) -> None:
        """An optimizer step with these gradient norms, of this timestep slot where all its rows have one."""
        self.steps += 1
        for name, norm in norms.items():
            self._norms[name] += norm
        if slot is not None:
            self._by_step[slot].append(norms["policy/grad_norm"])

    def means(self, ranks: Ranks) -> Metrics:
        """Of all ranks' rows."""
        names = ranks.union(self._sums)
        sums = {name: self._sums[name] for name in names}
        ranks.add_up([*sums.values(), self.ratios.sums])
        steps = max(1, self.steps)
        means = {name: total.item() / steps for name, total in (sums | self._norms).items()} | self.ratios.metrics()
        by_step = {k: torch.stack(norms).mean().item() for k, norms in sorted(self._by_step.items())}
        return means | {f"policy/grad_norm/step_{k}": norm for k, norm in by_step.items()}


def _ratio_moments(sums: Float[Tensor, "4 ..."]) -> dict[str, Float[Tensor, "..."]]:
    rows, off, squared, clipped = sums.cpu().double()  # not every device has float64
    spread = (squared / rows - (off / rows) ** 2).clamp(min=0).sqrt()
    return {"ratio_mean": 1 + off / rows, "ratio_std": spread, "clip_fraction": clipped / rows}


def neuron_metrics(scores: dict[str, list[Scores]]) -> Metrics:
    """Share of hidden neurons that are dormant at each threshold, for each kind of scores."""
    metrics: Metrics = {}
    for kind in scores:
        prefix = "" if kind == "activation" else f"{kind}_"
        every = torch.cat(scores[kind])
        metrics |= {
            f"neurons/{prefix}dormant_{tau:g}": (every <= tau).float().mean().item() for tau in DORMANCY_THRESHOLDS
        }
    return metrics


def reset_metrics(masks: list[Mask], before: list[Mask] | None, prefix: str = "reset/") -> Metrics:
    """Shares of hidden neurons that a reset took, and its overlap with the reset before it, if there was one."""
    shares = {f"{prefix}share/layer_{k}": mask.float().mean().item() for k, mask in enumerate(masks)}
    again = {f"{prefix}overlap": overlap(masks, before)} if before is not None else {}
    return {f"{prefix}share": torch.cat(masks).float().mean().item()} | shares | again
