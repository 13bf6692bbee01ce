"""One iteration of reward fine-tuning, top to bottom: sample -> score -> credit -> update -> reset."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from src.algorithms.base import Algorithm
from src.critic.base import Critic
from src.errors import TrainingError, UserError
from src.metrics.glossary import lookup
from src.metrics.training import RatioStatistics, critic_metrics, neuron_metrics, reset_metrics, reward_metrics
from src.normalise import PromptNormaliser
from src.policy.diffusion import DiffusionPolicy
from src.resets.base import Reset
from src.resets.ops import neuron_scores
from src.rewards.base import RewardModel
from src.seeding import generator_of, seed_of
from src.types import Credit, Metrics, Rollout

PHASES = ("sampling", "rewards", "critic_features", "update", "reset")
RESET_STREAM = 1 << 20  # keeps the draws of resets apart from those of samples


class RewardFinetuner(LightningModule):
    """Fine-tunes a diffusion policy on a reward, by any algorithm, with any critic and reset strategy.

    Args:
        optimizer: makes an optimizer from parameters, for the policy; `critic_optimizer` likewise.
        microbatch: (sample, timestep) rows that go through the UNet at a time.
        max_grad_norm: gradient-norm clip, of the policy and of the critic apart.
        neuron_probe: states of the rollout, all timesteps of evenly spread samples, that neurons are measured on.
    """

    def __init__(
        self,
        policy: DiffusionPolicy,
        reward: RewardModel,
        reward_name: str,
        algorithm: Algorithm,
        critic: Critic | None,
        reset: Reset,
        normaliser: PromptNormaliser,
        optimizer: Any,
        critic_optimizer: Any,
        microbatch: int,
        max_grad_norm: float,
        seed: int,
        neuron_probe: int = 1024,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False  # checkpoints hold what is trained, not the frozen base
        if reset.needs_critic and critic is None:
            raise UserError(
                f"reset={type(reset).__name__} needs a critic and {type(algorithm).__name__} has none: "
                "choose reset=none or algorithm=tdpo."
            )
        self.policy, self.reward, self.critic = policy, reward, critic
        self.reward_name, self.algorithm, self.reset, self.normaliser = reward_name, algorithm, reset, normaliser
        self._optimizer, self._critic_optimizer = optimizer, critic_optimizer
        self.microbatch, self.max_grad_norm, self.seed, self.neuron_probe = (
            microbatch,
            max_grad_norm,
            seed,
            neuron_probe,
        )
        self.iteration = self.reward_queries = self.optimizer_steps = 0
        self.phase_seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self.latest: Metrics = {}  # the row of the last iteration

    # ------------------------------------------------------------------------------------------------ the iteration

    def training_step(self, batch: list[str], batch_idx: int) -> None:
        """The whole of iteration `self.iteration + 1`, on one prompt a sample."""
        torch.manual_seed(seed_of(self.seed, self.iteration))  # dropout, and whatever else draws from the global state
        with self._timed("sampling"):
            rollout = self.sample(batch)
        with self._timed("rewards"):
            rewards = self.score(rollout)
        rollout = rollout.noisiest(self.algorithm.trained_steps(self.policy.num_steps))
        with self._timed("critic_features"):
            features = self.critic.features(rollout) if self.critic is not None else None
        with self._timed("update"):
            credit = self.credit(rollout, rewards, features)
            metrics = self.update(rollout, credit, features)
        self.iteration += 1
        self.reward_queries += len(rollout)
        with self._timed("reset"):
            metrics |= self.measure_and_reset(features)
        metrics |= reward_metrics(self.reward_name, rewards) | critic_metrics(credit)
        self.latest = self.record("iteration", metrics)

    def sample(self, prompts: list[str]) -> Rollout:
        seeds = [seed_of(self.seed, self.iteration, i) for i in range(len(prompts))]
        return self.policy.sample(prompts, seeds)

    def score(self, rollout: Rollout) -> Float[Tensor, " b"]:
        self.check_finite("a sampled picture", rollout.images)
        rewards = self.reward.score(rollout.images, rollout.prompts)
        self.check_finite("the reward", rewards)
        return rewards

    def credit(self, rollout: Rollout, rewards: Float[Tensor, " b"], features: Float[Tensor, "b t d"] | None) -> Credit:
        normalised = self.normaliser(rewards, rollout.prompts)
        values = None
        if self.critic is not None and features is not None:
            with torch.no_grad():
                values = self.critic.eval()(features.flatten(0, 1)).unflatten(0, features.shape[:2])
        return self.algorithm.credit(normalised, self.policy.step_std[: len(rollout.timesteps)], values)

    def update(self, rollout: Rollout, credit: Credit, features: Float[Tensor, "b t d"] | None) -> Metrics:
        """All optimizer steps of the iteration; returns means over them."""
        text = self.policy.encode_prompts(rollout.prompts)
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.device))
        ratios, steps = RatioStatistics(rollout.log_probs.shape[1], self.device), 0
        for samples, slots in self._updates(*rollout.log_probs.shape):
            for part in torch.arange(len(samples)).split(self.microbatch):
                i, j = samples[part], slots[part]
                share = len(part) / len(samples)
                log_prob = self.policy.log_prob(
                    rollout.latents[i, j + 1], rollout.latents[i, j], rollout.timesteps[j], text[i]
                )
                old = rollout.log_probs[i, j]
                policy = self.algorithm.policy_loss(log_prob, old, credit.advantages[i, j])
                self.manual_backward(policy.loss * share)
                sums["policy/loss"] += share * policy.loss.detach()
                ratios.update(j, policy.ratio, policy.clipped)
                if features is not None:
                    value_loss = self._critic_loss(features[i, j], credit, i, j)
                    self.manual_backward(value_loss * share)
                    sums["critic/loss"] += share * value_loss.detach()
            for name, norm in self._optimizer_step().items():
                sums[name] += norm
            steps += 1
        self.optimizer_steps += steps
        means = {name: total.item() / steps for name, total in sums.items()} | ratios.metrics()
        for name, value in means.items():
            self.check_finite(name, torch.tensor(value))
        return means

    def measure_and_reset(self, features: Float[Tensor, "b t d"] | None) -> Metrics:
        """Neuron statistics on this iteration's states and, where the strategy says so, the reset."""
        if self.critic is None or features is None:
            return {}
        head, (b, t) = self.critic.head, features.shape[:2]
        samples = torch.linspace(0, b - 1, min(b, max(1, self.neuron_probe // t))).round().long()
        scores = neuron_scores(head.hidden(features[samples].flatten(0, 1)))  # all timesteps of some samples
        masks = None
        if self.reset.due(self.iteration):
            rng = generator_of(self.seed, self.iteration, RESET_STREAM)
            masks = self.reset.apply(head, scores, self._optimizers()[1], rng)
        return neuron_metrics(scores) | reset_metrics(masks)

    # ---------------------------------------------------------------------------------------------- parts of phases

    def _updates(self, b: int, t: int) -> Iterator[tuple[Int[Tensor, " n"], Int[Tensor, " n"]]]:
        """(sample, timestep slot) rows of each optimizer step: timesteps in sampling order, row by row."""
        size = self.algorithm.samples_per_update or b
        for epoch in range(self.algorithm.inner_epochs):
            order = torch.arange(b)
            if size < b:
                order = torch.randperm(b, generator=generator_of(self.seed, self.iteration, b, epoch))
            groups = order.split(size)
            if self.algorithm.schedule == "trajectory":
                for group in groups:
                    yield group.repeat(t), torch.arange(t).repeat_interleave(len(group))
            else:
                for slot in range(t):
                    for group in groups:
                        yield group, torch.full_like(group, slot)

    def _critic_loss(self, features: Float[Tensor, "n d"], credit: Credit, i: Tensor, j: Tensor) -> Float[Tensor, ""]:
        assert self.critic is not None and credit.values is not None and credit.returns is not None
        value = self.critic.train()(features)
        return self.algorithm.critic_loss(value, credit.values[i, j], credit.returns[i, j])

    def _optimizers(self) -> list:
        optimizers = self.optimizers()
        return optimizers if isinstance(optimizers, list) else [optimizers]

    def _optimizer_step(self) -> dict[str, Tensor]:
        """One clipped step of every optimizer; returns the gradient norms before clipping."""
        norms = {}
        for name, optimizer in zip(("policy", "critic"), self._optimizers(), strict=False):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            norms[f"{name}/grad_norm"] = torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return norms

    def check_finite(self, name: str, values: Tensor) -> None:
        if not torch.isfinite(values).all():
            raise TrainingError(
                f"{name} is not finite in iteration {self.iteration + 1}; stopped. "
                "The last checkpoint and the metrics so far are intact; start anew with a lower learning rate."
            )

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.phase_seconds[phase] += time.perf_counter() - start

    # ------------------------------------------------------------------------------------------- logging and life

    def record(self, kind: str, metrics: Metrics) -> Metrics:
        """Sends one row to every logger and returns it; the x-axis of all curves is `reward_queries`."""
        row: Metrics = {
            "iteration": self.iteration,
            "reward_queries": self.reward_queries,
            "optimizer_steps": self.optimizer_steps,
            "seconds": round(sum(self.phase_seconds.values()), 3),
        }
        row |= metrics
        for key in row:
            lookup(key)  # nothing is logged that the glossary does not explain
        for logger in self.loggers:
            logger.log_metrics({"kind": kind} | row, step=self.iteration)  # type: ignore[arg-type]
        return row

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizers = [self._optimizer(self.policy.trainable())]
        if self.critic is not None:
            optimizers.append(self._critic_optimizer(list(self.critic.parameters())))
        return optimizers

    def checkpoint_bytes(self) -> int:
        """About how large a checkpoint is: what is trained, with Adam's two moments of it."""
        return 3 * sum(p.numel() * p.element_size() for p in self.parameters() if p.requires_grad)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return {key: value for key, value in super().state_dict(*args, **kwargs).items() if key in trained}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # no iteration is the last for good: a resumed run may be given more of them
        checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"] = False
        checkpoint["progress"] = {
            "iteration": self.iteration,
            "reward_queries": self.reward_queries,
            "optimizer_steps": self.optimizer_steps,
            "phase_seconds": self.phase_seconds,
            "stopped": bool(self.trainer.should_stop),  # by a callback, before its time
            "normaliser": self.normaliser.state_dict(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        progress = checkpoint["progress"]
        self.normaliser.load_state_dict(progress["normaliser"])
        self.iteration, self.reward_queries = progress["iteration"], progress["reward_queries"]
        self.optimizer_steps, self.phase_seconds = progress["optimizer_steps"], progress["phase_seconds"]
