"""GARDO (2512.24138): a KL penalty only where rewards disagree, a reference that follows, and credit for diversity.

- Gate: u = rank of the trained reward - mean rank of the others, within the rollout. A sample whose u lies above the
  (1 - q) quantile of the non-negative ones is suspected of a hack, and pays the KL; the others do not.
- Adaptive q: times 1.1 where the mean of the non-negative u is above all of its last 20, times 0.9 where it is below.
- The reference becomes the policy after `move_every` iterations, or beyond a KL.
- Diversity: the credit of a sample that is better than its group's mean is multiplied by d / mean d, d its smallest
  feature distance (1 - cos) to another of its group.

The public code ranks from the best down, so that its gate opens where the others like a picture *more*; here the prose
is followed (`ranks=descending`: the code). There a KL is averaged over gated rows, and so it is here. There advantages
are not divided by a standard deviation: algorithm.std=none is as there.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from src.algorithms.base import Loss
from src.errors import UserError
from src.policy.reference import Reference
from src.ranks import Ranks
from src.regularisers.kl_loss import KLLoss
from src.rewards.base import RewardModel
from src.types import Credit, Metrics, Rollout, Rows

LEAST, MOST = 0.02, 0.2  # of q
REMEMBERED = 20  # iterations that q goes by


class GARDO(KLLoss):
    """beta times the KL of gated samples; gate, adaptive quantile, moving reference and diversity can each be left out.

    Args:
        auxiliaries: rewards that the trained one is compared with; each scores every sample.
        tower: its image embeddings tell pictures of a group apart.
        gate: false lets all samples pay.
        quantile: q at first; `adaptive` false keeps it.
        diversity: whether credit is multiplied.
        ranks: `ascending`, the best picture has the highest rank; `descending` turns the gate around.
        others: see NearReference.
    """

    def __init__(
        self,
        auxiliaries: dict[str, RewardModel],
        tower: RewardModel,
        beta: float,
        gate: bool = True,
        quantile: float = 0.1,
        adaptive: bool = True,
        diversity: bool = True,
        ranks: Literal["ascending", "descending"] = "ascending",
        **others: Any,
    ):
        super().__init__(beta=beta, **others)
        if gate and not auxiliaries:
            raise UserError(
                "regulariser=gardo compares the trained reward with others, and this suite has no other one: choose "
                "another suite, or regulariser.gate=false."
            )
        if not 0 < quantile < 1:
            raise UserError(f"regulariser.quantile={quantile} must lie between 0 and 1.")
        self.auxiliaries = dict(auxiliaries) if gate else {}
        self.tower, self.diversity, self.order = tower, diversity, ranks
        self.gate, self.q, self.adaptive = gate, quantile, adaptive
        self.recent: list[float] = []  # mean non-negative u of the last iterations
        self.gated: Bool[Tensor, " b"] | None = None  # of all ranks' samples
        self.factor: Float[Tensor, " b"] | None = None

    needs_credit = True

    @property
    def extra_queries(self) -> int:
        return len(self.auxiliaries)

    def look(self, rollout: Rollout, rewards: Float[Tensor, " b"], prompts: Sequence[str], ranks: Ranks) -> Metrics:
        metrics: Metrics = {}
        for model in (*self.auxiliaries.values(), self.tower):
            model.to(rewards.device)
        if self.gate:
            scores = [model.score(rollout.images, rollout.prompts) for model in self.auxiliaries.values()]
            disagreement = suspicion(rewards, [ranks.gather(each) for each in scores], self.order)
            self._adapt(disagreement)
            self.gated = gate_of(disagreement, self.q)
            metrics = {"gardo/quantile": self.q, "gardo/gated": self.gated.float().mean().item()}
        if self.diversity:
            with torch.no_grad():
                features = ranks.gather(F.normalize(self.tower.embed_images(rollout.images), dim=-1))
            self.factor = diversity_factors(features, rewards, prompts)
            metrics["gardo/diversity"] = self.factor.mean().item()
        return metrics

    def _adapt(self, disagreement: Float[Tensor, " b"]) -> None:
        mean = disagreement[disagreement >= 0].mean().item()
        if self.adaptive and self.recent:
            change = 1.1 if mean > max(self.recent) else 0.9 if mean < min(self.recent) else 1.0
            self.q = min(MOST, max(LEAST, self.q * change))
        self.recent = [*self.recent, mean][-REMEMBERED:]

    def credited(self, credit: Credit) -> Credit:
        if self.factor is not None:
            credit.advantages = credit.advantages * self.factor[:, None]
        return credit

    def loss(self, rows: Rows, loss: Loss, reference: Reference) -> Float[Tensor, ""]:
        kl = self.kl(rows, loss, reference)
        if self.gated is None:
            return self.beta * kl.mean()
        gated = self.gated[rows.first + rows.samples].to(kl)
        return self.beta * (gated * kl).mean() / self.gated.float().mean().clamp(min=1 / len(self.gated)).item()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"q": self.q, "recent": self.recent}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.q, self.recent = state["q"], state["recent"]


def suspicion(
    trained: Float[Tensor, " b"], others: Sequence[Float[Tensor, " b"]], order: str = "ascending"
) -> Float[Tensor, " b"]:
    """u = rank of the trained reward - mean rank of the others; ties have the mean of their ranks."""
    u = rank(trained) - torch.stack([rank(other) for other in others]).mean(0)
    return u if order == "ascending" else -u


def rank(values: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """1 for the smallest, and so on; equal values share the mean of their ranks."""
    below = (values[None] < values[:, None]).sum(1)
    equal = (values[None] == values[:, None]).sum(1)
    return below + (equal + 1) / 2


def gate_of(disagreement: Float[Tensor, " b"], q: float) -> Bool[Tensor, " b"]:
    """Above the (1 - q) quantile of the non-negative ones; there always are such, as ranks have equal means."""
    return disagreement > disagreement[disagreement >= 0].quantile(1 - q)


def diversity_factors(
    features: Float[Tensor, "b d"], rewards: Float[Tensor, " b"], prompts: Sequence[str]
) -> Float[Tensor, " b"]:
    """d / mean d for samples at or above their group's mean reward; 1 for others, and in groups of one or of copies."""
    factors = torch.ones_like(rewards)
    for prompt in dict.fromkeys(prompts):
        own = torch.tensor([k for k, other in enumerate(prompts) if other == prompt], device=rewards.device)
        if len(own) < 2:
            continue
        distance = 1 - features[own] @ features[own].T
        distance.fill_diagonal_(torch.inf)
        nearest = distance.min(1).values.clamp(min=0)
        if nearest.mean() > 0:
            good = rewards[own] >= rewards[own].mean()
            factors[own] = torch.where(good, nearest / nearest.mean(), torch.ones_like(nearest))
    return factors
