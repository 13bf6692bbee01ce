"""The last phase of an iteration: neurons are measured whatever the strategy, and start afresh where it says so."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from src.critic.base import Critic
from src.errors import UserError
from src.metrics.training import explained_variance, neuron_metrics, reset_metrics
from src.overrides import choice_of
from src.policy.diffusion import DiffusionPolicy
from src.ranks import Ranks
from src.resets.base import Reset
from src.resets.lora import LoraNeurons
from src.resets.ops import Mask, Scores, even_states, magnitudes, neuron_scores, probe_states
from src.seeding import PROBE_STREAM, RESET_STREAM, generator_of
from src.types import Credit, Metrics, Rollout

FEW_STATES = 8  # what the authors' code measures neurons on, beside the probe of the configuration

Optimizers = list[Any]  # the policy's, and the critic's if there is one
Features = Float[Tensor, "own t d"] | None


class ResetPhase:
    """Applies a strategy to the hidden neurons of the critic, to the ranks of the policy's LoRA, or to both.

    Args:
        critic: None where the algorithm has none.
        microbatch: states that go through the UNet at a time.
        seed: the run's; draws are a function of it and of the iteration.
        probe, scattered: states of the rollout that neurons are measured on; see probe_states.

    Raises UserError where the strategy wants what is not there.
    """

    def __init__(
        self,
        strategy: Reset,
        critic: Critic | None,
        policy: DiffusionPolicy,
        microbatch: int,
        seed: int,
        probe: int,
        scattered: bool,
    ):
        if critic is None and strategy.needs_critic:
            kind = type(strategy)
            chosen = choice_of("reset", f"{kind.__module__}.{kind.__name__}")
            raise UserError(
                f"{chosen} needs a critic and this algorithm has none: choose reset=none or algorithm=tdpo."
            )
        if critic is None and strategy.needs_lora and (strategy.trigger or "").startswith(("critic/", "neurons/")):
            raise UserError(
                f"reset.trigger={strategy.trigger} is a critic's, and this algorithm has none: "
                "choose another, or algorithm=tdpo."
            )
        if probe < 1:
            raise UserError(f"neuron_probe={probe} must be at least 1.")
        self.strategy, self.critic, self.seed = strategy, critic, seed
        self.microbatch, self.probe, self.scattered = microbatch, probe, scattered
        self.lora = LoraNeurons(policy, microbatch) if strategy.needs_lora else None
        self.last_masks: list[Mask] | None = None  # of the last reset
        self.last_lora_masks: list[Mask] | None = None
        self.recovering: tuple[int, float] | None = None  # iteration and explained variance of a reset, until regained

    def __call__(
        self,
        iteration: int,
        rollout: Rollout,
        features: Features,
        credit: Credit,
        metrics: Metrics,
        optimizers: Optimizers,
        ranks: Ranks,
    ) -> Metrics:
        """Neuron statistics on this iteration's states and, where the strategy says so, the reset."""
        scores = self._neuron_scores(iteration, features, credit, ranks) if features is not None else {}
        measured = self.recovery(iteration, metrics) | (neuron_metrics(scores) if scores else {})
        if not self.strategy.due(iteration, metrics | measured):
            return measured | ({"reset/share": 0.0} if scores else {})
        rng = generator_of(self.seed, iteration if self.strategy.noise == "fresh" else 0, RESET_STREAM)
        if self.strategy.needs_critic and features is not None:
            measured |= self._reset_critic(features, credit, scores, optimizers[1], ranks, rng)
            if measured["reset/share"] > 0:
                self.recovering = iteration, metrics["critic/explained_variance"]
        if self.lora is not None:
            measured |= self._reset_lora(self.lora, rollout, len(credit.advantages), optimizers[0], ranks, rng)
        return measured

    def recovery(self, iteration: int, metrics: Metrics) -> Metrics:
        """Iterations that the critic took to explain as much as before its last reset, once it does."""
        if self.recovering is None or metrics["critic/explained_variance"] < self.recovering[1]:
            return {}
        since, self.recovering = self.recovering[0], None
        return {"reset/recovery": float(iteration - since)}

    def unmet(self, iterations: int) -> str | None:
        """Why none of so many iterations of a run has reset anybody; None where one did, or none was to."""
        strategy = self.strategy
        made = [masks for masks in (self.last_masks, self.last_lora_masks) if masks is not None]
        if not strategy.selects or any(mask.any() for masks in made for mask in masks):
            return None
        if made:
            return (
                f"the last reset took nobody: by reset.threshold={strategy.threshold} and "
                f"reset.ratio={strategy.ratio} no neuron was to be reset."
            )
        if strategy.trigger is None and strategy.every <= iterations:
            return None  # a strategy with a `due` of its own, or a run of an earlier version
        if strategy.every > iterations:
            return (
                f"no reset fell due: reset.every={strategy.every}, iterations={iterations}; "
                "with reset.every=1 every iteration ends in one."
            )
        return (
            f"no reset fell due: reset.trigger={strategy.trigger} was not {strategy.side} reset.level={strategy.level} "
            f"at any iteration that reset.every={strategy.every} names."
        )

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of it: who was reset last, and what recovers from it."""
        names = ("last_masks", "last_lora_masks", "recovering")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Of an earlier session."""
        for name in self.state_dict():  # runs of earlier versions have none of them
            setattr(self, name, state.get(name))

    def _neuron_scores(
        self, iteration: int, features: Float[Tensor, "own t d"], credit: Credit, ranks: Ranks
    ) -> dict[str, list[Scores]]:
        """By activation and by gradient on the probe's states, and by activation on as few as the authors look at."""
        assert self.critic is not None and credit.returns is not None
        head, targets = self.critic.head, credit.returns
        b, t = targets.shape

        def probed(states: int, scattered: bool) -> tuple[Float[Tensor, "n d"], Float[Tensor, " n"]]:
            """Features and returns of this rank's part of the states."""
            rng = generator_of(self.seed, iteration, PROBE_STREAM)
            samples, slots = probe_states(b, t, states, scattered, rng)
            own = ranks.own(samples, b)
            samples, slots = samples[own], slots[own]
            return features[samples - ranks.part(b).start, slots], targets[samples, slots]

        states, returns = probed(self.probe, self.scattered)
        few, _ = probed(FEW_STATES, True)
        found = {
            "activation": magnitudes(head.hidden(states)),
            "gradient": magnitudes(head.gradients(states, returns)),
            "few_states": magnitudes(head.hidden(few)),
        }
        ranks.add_up([layer for layers in found.values() for layer in layers])
        return {name: neuron_scores(layers) for name, layers in found.items()}

    def _reset_critic(
        self,
        features: Float[Tensor, "own t d"],
        credit: Credit,
        scores: dict[str, list[Scores]],
        optimizer: torch.optim.Optimizer,
        ranks: Ranks,
        rng: torch.Generator,
    ) -> Metrics:
        assert self.critic is not None and credit.returns is not None
        before = explained_variance(self.critic.values(features, ranks), credit.returns)
        with torch.no_grad():
            masks = self.strategy.apply(self.critic.head, scores[self.strategy.score], optimizer, rng)
        after = explained_variance(self.critic.values(features, ranks), credit.returns)
        metrics, self.last_masks = reset_metrics(masks, self.last_masks), masks
        told = {"reset/explained_variance_before": before, "reset/explained_variance_after": after}
        return metrics | told

    def _reset_lora(
        self,
        lora: LoraNeurons,
        rollout: Rollout,
        b: int,
        optimizer: torch.optim.Optimizer,
        ranks: Ranks,
        rng: torch.Generator,
    ) -> Metrics:
        samples, slots = even_states(b, len(rollout.timesteps), self.microbatch)
        own = ranks.own(samples, b)
        activity = lora.magnitudes(rollout, samples[own] - ranks.part(b).start, slots[own])
        ranks.add_up(activity)
        masks = [self.strategy.select(layer, rng) for layer in neuron_scores(activity)]
        lora.reinit(masks, self.strategy.reinit, optimizer, rng)
        metrics, self.last_lora_masks = reset_metrics(masks, self.last_lora_masks, "reset/lora_"), masks
        return metrics
