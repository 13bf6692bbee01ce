"""What a reset strategy is: which hidden neurons of the critic start afresh, and when."""

from typing import Literal

import torch

from src.critic.base import Head
from src.errors import UserError
from src.metrics.glossary import lookup
from src.resets.ops import Mask, Reinit, Scores
from src.types import Metrics

OF_AN_ITERATION = ("reward/", "policy/", "critic/", "neurons/")  # what is known when a reset may fall due


class Reset:
    """Base strategy: it selects nobody.

    Args:
        every: iterations between resets.
        threshold: tau; a neuron with score <= tau is dormant. Null: activity does not decide who is eligible.
        ratio: share of the eligible neurons of each layer to reset, in [0, 1].
        outgoing, step_counter: see `ops.Reinit`.
        score: what activity is: `activation` (ReDo, Sokar et al. 2023) or `gradient` (GraMa, arXiv 2505.24061).
        trigger: a metric of the iteration, such as neurons/dormant_0.1; then a reset falls due, at the iterations that
            `every` names, only where the metric is above (`side`) or below its `level`.
        level: of the trigger. side: on which of it a reset falls due.
        noise: every reset draws weights of its own, or (`same`, as in the authors' code) all draw the same ones.
        where: the `critic`'s hidden neurons, the ranks of the `policy`'s LoRA (by activation alone), or `both`.
    """

    selects = True  # anybody at all
    takes_all = False  # whatever the ratio

    def __init__(
        self,
        every: int = 10,
        threshold: float | None = 0.0,
        ratio: float = 1.0,
        outgoing: Literal["zero", "redraw"] = "zero",
        step_counter: Literal["keep", "clear"] = "keep",
        score: Literal["activation", "gradient"] = "activation",
        trigger: str | None = None,
        level: float = 0.0,
        side: Literal["above", "below"] = "above",
        where: Literal["critic", "policy", "both"] = "critic",
        noise: Literal["fresh", "same"] = "fresh",
    ):
        if not 0 <= ratio <= 1:
            raise UserError(f"reset.ratio={ratio} lies outside [0, 1]; it is the share of neurons to reset.")
        if self.takes_all and ratio != 1:
            raise UserError(f"reset=full takes every neuron, not reset.ratio={ratio} of them: choose reset=random.")
        if every < 1:
            raise UserError(f"reset.every={every} must be at least 1 iteration.")
        if threshold is not None and threshold < 0:
            raise UserError(f"reset.threshold={threshold} must not be negative; scores never are.")
        if trigger is not None:
            _check_trigger(trigger)
        self.every, self.threshold, self.ratio, self.score = every, threshold, ratio, score
        if score == "gradient" and where != "critic":
            raise UserError(
                f"reset.where={where}: LoRA's ranks are scored by activation; choose reset.score=activation."
            )
        if self.selects and where != "critic" and type(self).select is Reset.select:
            raise UserError(
                f"reset.where={where}: {type(self).__name__} has no select, by which LoRA's ranks are reset: choose "
                "reset.where=critic."
            )
        self.trigger, self.level, self.side, self.where, self.noise = trigger, level, side, where, noise
        self.reinit = Reinit(outgoing, step_counter)

    @property
    def needs_critic(self) -> bool:
        """Whether it resets neurons of the critic."""
        return self.selects and self.where != "policy"

    @property
    def needs_lora(self) -> bool:
        """Whether it resets ranks of the policy's LoRA."""
        return self.selects and self.where != "critic"

    def due(self, iteration: int, metrics: Metrics) -> bool:
        """Whether a reset follows this iteration (counted from 1). Raises UserError where its trigger is no metric."""
        if self.trigger is not None and self.trigger not in metrics:  # in the first iteration, before much is lost
            raise UserError(
                f"reset.trigger={self.trigger} is not logged by this run; choose from {', '.join(metrics)}."
            )
        if iteration % self.every:
            return False
        if self.trigger is None:
            return True
        value = metrics[self.trigger]
        return value > self.level if self.side == "above" else value < self.level

    def eligible_active(self, scores: Scores) -> Mask:
        """Neurons with score > tau; all of them where there is no threshold."""
        return torch.ones_like(scores, dtype=torch.bool) if self.threshold is None else scores > self.threshold

    def select(self, scores: Scores, generator: torch.Generator) -> Mask:
        """The neurons of one layer to reset; of a LoRA, where `where` says so, the ranks of one adapter."""
        return torch.zeros_like(scores, dtype=torch.bool)

    def apply(
        self, head: Head, scores: list[Scores], optimizer: torch.optim.Optimizer, generator: torch.Generator
    ) -> list[Mask]:
        """Resets the selected neurons of the critic in place; no gradient is recorded.

        Args:
            head: the critic's; its `linears` are the hidden layers and the output layer.
            scores: of the hidden neurons, layer by layer.
            optimizer: the critic's; what it remembers of weights drawn anew should be forgotten (`ops.Reinit`).
            generator: the only source of what is drawn (`head.draw`); a function of seed and iteration.

        Returns the mask of each hidden layer: who was reset, for reset/share, reset/overlap and the like.
        """
        masks = [self.select(layer, generator) for layer in scores]
        self.reinit(head, masks, optimizer, generator)
        return masks


def _check_trigger(trigger: str) -> None:
    try:
        lookup(trigger)
        known = trigger.startswith(OF_AN_ITERATION)
    except KeyError:
        known = False
    if not known:
        raise UserError(
            f"reset.trigger={trigger} is no metric of an iteration ({', '.join(OF_AN_ITERATION)}...); one is "
            "neurons/dormant_0.1."
        )
