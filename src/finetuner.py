"""One iteration of reward fine-tuning, top to bottom: sample -> score -> credit -> update -> reset."""

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Float, Int
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from src.algorithms.base import Algorithm
from src.critic.base import Critic
from src.errors import BASE_IS_BROKEN, LOWER_RATE, TrainingError, UserError, first_line, reward_is_broken
from src.learner import Learner
from src.metrics.training import UpdateTally, critic_metrics, reward_metrics
from src.normalise import PromptNormaliser
from src.policy.diffusion import DiffusionPolicy
from src.policy.reference import Reference
from src.ranks import Ranks
from src.regularisers.base import Regulariser, trajectory_kl
from src.regularisers.none import NoRegulariser
from src.resets.base import Reset
from src.resets.phase import ResetPhase
from src.rewards.base import RewardModel
from src.seeding import DROPOUT_STREAM, LOSS_STREAM, WINDOW_STREAM, seed_of
from src.types import Credit, Metrics, Rollout, Row, Rows

PHASES = ("sampling", "rewards", "critic_features", "reference", "update", "reset")


class RewardFinetuner(Learner):
    """Fine-tunes a diffusion policy on a reward, by any algorithm, with any regulariser, critic and reset strategy.

    Args:
        regulariser: what keeps the policy near its reference; null for nothing.
        optimizer: makes an optimizer from parameters, for the policy; `critic_optimizer` likewise.
        microbatch: (sample, timestep) rows that go through the network at a time.
        max_grad_norm: gradient-norm clip, of the policy and of the critic apart.
        lr_factor, lr_ramp: the policy's learning rate goes linearly to `lr_factor` times itself in so many iterations.
        critic_epochs: passes of the critic over an iteration's states: the first beside the policy's updates, the
            others after them, with an optimizer step for each timestep.
        critic_gradient_factor: multiplies the critic's gradients once they are clipped; 2^-16 is what the authors'
            gradient scaler does at first, which two optimizers share.
        neuron_probe, neuron_probe_scattered: states of the rollout that neurons are measured on; see probe_states.
        reward_members: names of the rewards that the trained one is made of, where it is an ensemble.
    """

    reward_name: str

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
        neuron_probe_scattered: bool = False,
        lr_factor: float = 1.0,
        lr_ramp: int = 0,
        critic_epochs: int = 1,
        critic_gradient_factor: float = 1.0,
        reward_members: Sequence[str] = (),
        regulariser: Regulariser | None = None,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False  # checkpoints hold what is trained, not the frozen base
        if critic_epochs < 1:
            raise UserError(f"critic_epochs={critic_epochs} must be at least 1.")
        self.policy, self.reward, self.critic = policy, reward, critic
        self.reward_name, self.algorithm, self.normaliser = reward_name, algorithm, normaliser
        self.reward_members = list(reward_members)
        self.regulariser, self.reference = regulariser or NoRegulariser(), Reference(policy)
        self._optimizer, self._critic_optimizer = optimizer, critic_optimizer
        self.microbatch, self.max_grad_norm, self.seed = microbatch, max_grad_norm, seed
        self.reset = ResetPhase(reset, critic, policy, microbatch, seed, neuron_probe, neuron_probe_scattered)
        self.lr_factor, self.lr_ramp = lr_factor, lr_ramp
        self.critic_epochs, self.critic_gradient_factor = critic_epochs, critic_gradient_factor
        self.iteration = self.samples = self.reward_queries = self.reward_gradients = self.optimizer_steps = 0
        self.phase_seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self.latest: Row = {}  # the row of the last iteration

    @property
    def needs_reference(self) -> bool:
        """Whether algorithm or regulariser asks what the reference would have done."""
        return self.algorithm.needs_reference or self.regulariser.needs_reference

    @property
    def averaged(self) -> list[Tensor] | None:
        return self.regulariser.averaged

    @property
    def ranks(self) -> Ranks:
        return Ranks(self.global_rank, self._trainer.world_size) if self._trainer else Ranks()

    # ------------------------------------------------------------------------------------------------ the iteration

    def training_step(self, batch: list[str], batch_idx: int) -> None:
        """The whole of iteration `self.iteration + 1`, on one prompt a sample; a rank takes its part of them."""
        # dropout, and whatever else draws from the global state
        torch.manual_seed(seed_of(self.seed, self.iteration, self.global_rank, DROPOUT_STREAM))
        with self._timed("sampling"):
            rollout = self.sample(batch)
        with self._timed("rewards"):
            rewards = self.score(rollout)
            looked = self.regulariser.look(rollout, rewards, batch, self.ranks)
        rollout = rollout.window(self.trained_steps())
        with self._timed("critic_features"):
            features = None
            if self.critic is not None:
                features = self.critic.compared(self.critic.features(rollout), batch, self.ranks)
        with self._timed("reference"):
            kl = self.ask_reference(rollout)
        with self._timed("update"):
            credit = self.credit(batch, rewards, rollout, features)
            metrics = self.update(rollout, credit, features)
        self.iteration += 1
        self._count(len(batch))
        metrics |= looked | {"kl/reference": kl} if kl is not None else {}
        metrics |= self.regulariser.after(kl, rollout.x_0[0].numel(), self.reference, self.iteration)
        metrics |= self.algorithm.after(self.policy, self.optimizer_steps)
        with self._timed("reset"):
            metrics |= reward_metrics(self.reward_name, rewards) | critic_metrics(credit)
            metrics |= self.reset(self.iteration, rollout, features, credit, metrics, self._optimizers(), self.ranks)
        self.latest = self.record("iteration", metrics)

    def sample(self, prompts: list[str]) -> Rollout:
        """This rank's part of the samples."""
        part = self.ranks.part(len(prompts))
        seeds = [seed_of(self.seed, self.iteration, i) for i in range(part.start, part.stop)]
        starts = None
        if self.algorithm.shared_noise:  # the first sample of its group lends a sample its x_T
            starts = [seed_of(self.seed, self.iteration, i) for i in self.algorithm.firsts(prompts)[part]]
        predicted = self.critic is not None and self.critic.state == "predicted"
        means = self.algorithm.needs_means or self.needs_reference
        self.policy.place_window(seed_of(self.seed, self.iteration, WINDOW_STREAM))
        with self.algorithm.sampling(self.policy):
            return self.policy.sample(prompts[part], seeds, predicted, means, starts)

    def score(self, rollout: Rollout) -> Float[Tensor, " b"]:
        """Rewards of all ranks' samples."""
        self.check_pictures(rollout.images)
        rewards = self.reward.score(rollout.images, rollout.prompts)
        self.check_scores(self.reward_name, rewards)
        return self.ranks.gather(rewards)

    def ask_reference(self, rollout: Rollout) -> float | None:
        """What the reference would have done, where somebody wants it; returns the KL from it, nats a trajectory."""
        if not self.needs_reference:
            return None
        rollout.reference_means = self.reference.means(rollout)
        kl = trajectory_kl(rollout, self.policy.sampler.stds(rollout.timesteps))
        return self.ranks.gather(kl).mean().item()

    def credit(
        self,
        prompts: list[str],
        rewards: Float[Tensor, " b"],
        rollout: Rollout,
        features: Float[Tensor, "own t d"] | None,
    ) -> Credit:
        """Of all samples, whichever rank's they are; the rollout and features are this rank's."""
        step_std = self.policy.sampler.stds(rollout.timesteps)
        normalised = self.algorithm.normalise(rewards, prompts, self.normaliser)
        returns = normalised[:, None].expand(-1, len(step_std))
        penalty = self.regulariser.penalty(rollout, step_std, self.ranks)
        values = None
        if self.critic is not None and features is not None:
            values = self.critic.values(features, self.ranks)
        return self.regulariser.credited(self.algorithm.credit_less(penalty, returns, step_std, values))

    def update(self, rollout: Rollout, credit: Credit, features: Float[Tensor, "own t d"] | None) -> Metrics:
        """All optimizer steps of the iteration; returns means over them."""
        self._set_learning_rate()
        b, t = credit.advantages.shape
        own, tally = credit.of(self.ranks.part(b)), UpdateTally(t, self.device)
        for total, samples, slots, slot in self._own_updates(credit.partners, b, t):
            draw = seed_of(self.seed, self.iteration, tally.steps, LOSS_STREAM)
            for part in torch.arange(len(samples)).split(self.microbatch):
                if len(part):  # else all of these samples are other ranks'
                    i, j = samples[part], slots[part]
                    rows = Rows(rollout, own, i, j, self.reward, self.reference, draw, self.ranks.part(b).start)
                    self._descend(rows, features, len(part) / total, tally)
            tally.count_step(self._optimizer_step(), slot)
            self.regulariser.stepped(self.policy)
        if features is not None:
            self._critic_passes(features, own, b)
        self.optimizer_steps += tally.steps
        means = tally.means(self.ranks)
        for name, value in means.items():
            if not ("grad_norm" in name and self._scaler):  # a scale is found by overflowing now and then
                self.check_finite(name, torch.tensor(value))
        return means

    # ---------------------------------------------------------------------------------------------- parts of phases

    def trained_steps(self) -> range:
        """Which of a trajectory's steps are trained: the noisiest of those with a density; a contiguous part."""
        if self.algorithm.whole_trajectory:
            return range(self.policy.num_steps)
        with_density = self.policy.sampler.stochastic
        return with_density[: self.algorithm.trained_steps(len(with_density))]

    def _count(self, samples: int) -> None:
        """An iteration's samples, and what was asked of rewards about them: once for each picture and reward."""
        gradients = self.algorithm.gradients_a_sample
        self.samples += samples
        self.reward_queries += samples * (self.reward.queries * max(1, gradients) + self.regulariser.extra_queries)
        self.reward_gradients += samples * self.reward.queries * gradients

    def _set_learning_rate(self) -> None:
        """A function of the iteration alone, so that a resumed run has it too."""
        progress = min(1.0, self.iteration / self.lr_ramp) if self.lr_ramp else 1.0
        for group in self._optimizers()[0].param_groups:
            first = group.setdefault("initial_lr", group["lr"])  # kept in checkpoints
            group["lr"] = first * (1 + (self.lr_factor - 1) * progress)

    def _own_updates(
        self, partners: Int[Tensor, " b"] | None, b: int, t: int
    ) -> Iterator[tuple[int, Tensor, Tensor, int | None]]:
        """Of each optimizer step the number of rows, this rank's samples and slots, and the slot if all share one.

        Where samples have partners, those that have none cost nothing and are left out.
        """
        for samples, slots in self.algorithm.updates(b, t, self.seed, self.iteration):
            if partners is not None:
                preferred = partners.cpu()[samples] >= 0
                samples, slots = samples[preferred], slots[preferred]
            if not len(samples):
                continue
            own = self.ranks.own(samples, b)
            shared = int(slots[0]) if (slots == slots[0]).all() else None
            yield len(samples), samples[own] - self.ranks.part(b).start, slots[own], shared

    def _descend(self, rows: Rows, features: Float[Tensor, "own t d"] | None, share: float, tally: UpdateTally) -> None:
        """Adds to the gradients what these rows cost: the policy by algorithm and regulariser, and the critic.

        `share` of the optimizer step's rows are these.
        """
        loss = self.algorithm.loss(rows, self.policy)
        extra = self.regulariser.loss(rows, loss, self.reference)
        self._backward((loss.value if extra is None else loss.value + extra) * share)
        tally.add(share, {"policy/loss": loss.value} | loss.metrics)
        if extra is not None:
            tally.add(share, {"regulariser/loss": extra})
        if loss.ratios is not None:
            tally.ratios.update(rows.slots, *loss.ratios)
        if features is not None:
            value_loss = self._critic_loss(features[rows.samples, rows.slots], rows.credit, rows.samples, rows.slots)
            self._backward(value_loss * share)
            tally.add(share, {"critic/loss": value_loss})

    def _backward(self, loss: Float[Tensor, ""]) -> None:
        """Adds to this rank's gradients; they are added up over ranks once an optimizer step."""
        strategy = self.trainer.strategy
        apart: AbstractContextManager = nullcontext()
        if isinstance(strategy, ParallelStrategy):
            apart = strategy.block_backward_sync()
        with apart:
            self.manual_backward(loss)

    def _critic_loss(self, features: Float[Tensor, "n d"], credit: Credit, i: Tensor, j: Tensor) -> Float[Tensor, ""]:
        assert self.critic is not None and credit.values is not None and credit.returns is not None
        value = self.critic.train()(features)
        return self.algorithm.critic_loss(value, credit.values[i, j], credit.returns[i, j])

    def _critic_passes(self, features: Float[Tensor, "own t d"], credit: Credit, b: int) -> None:
        """The critic's passes beyond the first, over b samples of which these are this rank's."""
        for k in range(features.shape[1] * (self.critic_epochs - 1)):
            slot = k % features.shape[1]
            for rows in torch.arange(len(features)).split(self.microbatch):
                loss = self._critic_loss(features[rows, slot], credit, rows, torch.full_like(rows, slot))
                self._backward(loss * len(rows) / b)
            self._optimizer_step(("critic",))

    @property
    def _scaler(self) -> torch.amp.GradScaler | None:
        """Of 16-mixed."""
        return getattr(self.trainer.precision_plugin, "scaler", None)

    def _optimizers(self) -> list:
        optimizers = self.optimizers()
        return optimizers if isinstance(optimizers, list) else [optimizers]

    def _optimizer_step(self, of: tuple[str, ...] = ("policy", "critic")) -> dict[str, Tensor]:
        """One clipped step of these optimizers; returns the gradient norms before clipping."""
        norms, named = {}, zip(("policy", "critic"), self._optimizers(), strict=False)
        optimizers = {name: optimizer for name, optimizer in named if name in of}
        learnt = [[p for group in optimizer.param_groups for p in group["params"]] for optimizer in optimizers.values()]
        for parameter in (p for parameters in learnt for p in parameters if p.grad is None):
            parameter.grad = torch.zeros_like(parameter)  # this rank had no row; the all-reduce wants one of each
        self.ranks.add_up([p.grad for parameters in learnt for p in parameters])
        scaler = self._scaler
        for (name, optimizer), parameters in zip(optimizers.items(), learnt, strict=True):
            if scaler is not None:
                scaler.unscale_(optimizer.optimizer)
            norms[f"{name}/grad_norm"] = torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
            if name == "critic" and self.critic_gradient_factor != 1:
                torch._foreach_mul_([p.grad for p in parameters], self.critic_gradient_factor)
            if scaler is not None:
                scaler.step(optimizer.optimizer)  # Lightning's own step would also update the scale
            else:
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if scaler is not None:
            scaler.update()  # once for both, or the second would be unscaled by another scale than it was scaled by
        return norms

    def check_finite(self, name: str, values: Tensor, mend: str = LOWER_RATE, where: str = "") -> None:
        """Raises TrainingError, on all ranks if on one."""
        if not self.ranks.agree(bool(torch.isfinite(values).all()), self.device):
            where = where or f"in iteration {self.iteration + 1}"
            raise TrainingError(f"{name} is not finite {where}; stopped. {mend}")

    def check_pictures(self, images: Float[Tensor, "b 3 h w"], where: str = "") -> None:
        """Raises TrainingError on pictures that are no longer any; of the untouched base it is not training's fault."""
        self.check_finite("a sampled picture", images, LOWER_RATE if self.optimizer_steps else BASE_IS_BROKEN, where)

    def check_scores(self, name: str, scores: Float[Tensor, " b"], where: str = "") -> None:
        """Raises TrainingError on what a reward says of pictures that are in order."""
        self.check_finite(f"the reward {name}", scores, reward_is_broken(name), where)

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.phase_seconds[phase] += time.perf_counter() - start

    # ------------------------------------------------------------------------------------------- logging and life

    def heading(self, kind: str) -> Row:
        return {
            "iteration": self.iteration,
            "reward_queries": self.reward_queries,
            "reward_gradients": self.reward_gradients,
            "optimizer_steps": self.optimizer_steps,
            "seconds": round(sum(self.phase_seconds.values()), 3),
        }

    def configure_optimizers(self) -> OptimizerLRScheduler:
        try:
            optimizers = [self._optimizer(self.policy.trainable())]
            if self.critic is not None:
                optimizers.append(self._critic_optimizer(list(self.critic.parameters())))
        except (TypeError, ValueError) as error:
            raise UserError(f"optimizer or critic_optimizer: {first_line(error)}.") from error
        return optimizers

    def on_fit_start(self) -> None:
        self.regulariser.begun(self.policy)

    def checkpoint_bytes(self) -> int:
        """About how large a checkpoint is: what is trained, with Adam's two moments of it."""
        return 3 * sum(p.numel() * p.element_size() for p in self.parameters() if p.requires_grad)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return {key: value for key, value in super().state_dict(*args, **kwargs).items() if key in trained}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        largest = torch.stack([p.detach().abs().max() for p in self.parameters() if p.requires_grad])
        # before it takes the place of one that is in order
        self.check_finite("a trained weight", largest, where=f"after iteration {self.iteration}")
        # no iteration is the last for good: a resumed run may be given more of them
        checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"] = False
        checkpoint["progress"] = {
            "iteration": self.iteration,
            "samples": self.samples,
            "reward_queries": self.reward_queries,
            "reward_gradients": self.reward_gradients,
            "optimizer_steps": self.optimizer_steps,
            "phase_seconds": self.phase_seconds,
            "stopped": bool(self.trainer.should_stop),  # by a callback, before its time
            "normaliser": self.normaliser.state_dict(),
            "algorithm": self.algorithm.state_dict(),
            "regulariser": self.regulariser.state_dict(),
            "reference": self.reference.state_dict(),
            **self.reset.state_dict(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        progress = checkpoint["progress"]
        self.normaliser.load_state_dict(progress["normaliser"])
        self.iteration, self.reward_queries = progress["iteration"], progress["reward_queries"]
        self.optimizer_steps = progress["optimizer_steps"]
        self.samples = progress.get("samples", self.reward_queries)  # runs of earlier versions: one query a sample
        self.reward_gradients = progress.get("reward_gradients", 0)
        self.phase_seconds |= progress["phase_seconds"]
        for part in ("algorithm", "regulariser"):  # runs of earlier versions have neither
            if progress.get(part):
                getattr(self, part).load_state_dict(progress[part])
        self.reference.load_state_dict(progress.get("reference"))
        self.reset.load_state_dict(progress)
