"""Cross-reward evaluation: fixed prompts and seeds, every reward of the suite, against the base model's pictures."""

import time
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, Trainer
from torch import Tensor

from src.callbacks.gallery import Gallery
from src.callbacks.keeping import keep_weights
from src.errors import UserError
from src.learner import Learner
from src.metrics.diversity import DriftFromBase, Network, WithinPromptDiversity, lpips, lpips_within
from src.metrics.intervals import area_under, bootstrap_mean, freedom_within, spread_within
from src.metrics.joint import joint_rates
from src.metrics.kl import TrajectoryKL
from src.metrics.pictures import PictureStatistics
from src.policy.diffusion import Conditions
from src.progress import Bar
from src.prompts import PromptSets
from src.ranks import Ranks
from src.rewards.base import RewardModel
from src.seeding import EVALUATION_STREAM, seed_of
from src.types import Metrics, Rollout

NO_SPREAD = 1e-6  # of a reward; below it are rounding errors only


@dataclass
class EvaluationSet:
    """One set of prompts, each with its fixed seeds, and what the base model made of them."""

    name: str  # first part of its keys
    prompts: list[str]
    seeds: list[int]
    base: dict[str, Tensor] = field(default_factory=dict)  # reward -> scores of the base's pictures
    base_features: Tensor | None = None
    peak: dict[str, float] = field(default_factory=dict)  # reward -> highest gain so far
    lender: "EvaluationSet | None" = None  # whose base sd this one has where each of its prompts has one picture

    def compare(self, scores: dict[str, Tensor], trained: str | None, judges: Collection[str] = ()) -> Metrics:
        """Every reward against the base's pictures of the same prompts and seeds; all but the judges also jointly.

        A reward that the base's pictures do not differ in has no base sd, and so no gain.
        """
        self.base = self.base or scores
        gains = {name: bootstrap_mean(values.numpy(), self.prompts) for name, values in self.gains(scores).items()}
        own = gains.get(trained) if trained else None
        metrics: Metrics = {}
        for name, values in scores.items():
            base = self.base[name]
            wins = (values > base).float() + 0.5 * (values == base).float()
            row = {
                "mean": values.mean().item(),
                "std": values.std(correction=0).item(),
                "base_sd": self._base_sd(name),
                "win_rate": wins.mean().item(),
            }
            if name in gains:
                gain = gains[name]
                self.peak[name] = max(gain.mean, self.peak.get(name, -np.inf))
                row |= {"gain": gain.mean, "gain_low": gain.low, "gain_high": gain.high}
                row["below_peak"] = self.peak[name] - gain.mean
            if own is not None and name in gains:
                row["gap"] = own.mean - gains[name].mean
            metrics |= {f"{self.name}/{name}/{key}": value for key, value in row.items()}
        joint = joint_rates({name: values for name, values in scores.items() if name not in judges}, self.base)
        return metrics | {f"{self.name}/{key}": value for key, value in joint.items()}

    def _base_sd(self, name: str) -> float:
        if self.lender is not None and not freedom_within(self.prompts) and freedom_within(self.lender.prompts):
            return self.lender._base_sd(name)
        return spread_within(self.base[name].numpy(), self.prompts)

    def gains(self, scores: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of each picture over the base's of the same prompt and seed, base sd; of rewards that have one."""
        spread = {name: self._base_sd(name) for name in scores}
        return {name: (scores[name] - self.base[name]) / sd for name, sd in spread.items() if sd > NO_SPREAD}

    def of_averaged(self) -> "EvaluationSet":
        """The same pictures of averaged weights, which have keys and peaks of their own."""
        return replace(self, name=f"{self.name}_ema", peak={})

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {"base": self.base, "base_features": self.base_features, "peak": self.peak}


class CrossRewardEvaluation(Callback):
    """Samples the same prompts with the same seeds before training, every `every` iterations, and at the end.

    Rewards are reported raw and as the gain over the base picture of the same prompt and seed, in base sd: the standard
    deviation of the base's samples about the mean of their prompt; where prompts have one picture each, that of the
    training prompts or, if these have no more, about the mean of all. (A reward learnt from comparisons within prompts
    may have an arbitrary offset for each prompt, so that its spread between prompts measures nothing.)
    Training does not notice: evaluation draws from generators of its own. Where a regulariser averages the weights, the
    average is measured too.

    Args:
        rewards: every reward to report, by name. judge: which of them is the truth, if any is. judges: those that are
            no reward to train on, and have no part in joint rates.
        tower: its image embeddings measure diversity and drift; best one that no policy trains on.
        samples_per_prompt: pictures a training prompt, each with its own fixed seed.
        held_out_samples_per_prompt: the same of prompts that no run trains on.
        every: iterations between two evaluations.
        kl_samples: trajectories, of training prompts, that the KL from the base is measured on.
        max_prompts: of each set, spread evenly over it; null for all.
        lpips_network: measures diversity by LPIPS too; needs torchvision and its weights.
        grid_pictures: pictures of the grid that is saved and logged; 0: neither that nor the worst hacks are drawn.
        keep_weights: of every evaluation in training, as weights/checkpoint-ITERATION, to be evaluated otherwise later.
        seed: of the evaluation noise; the same for all runs, so that runs compare picture by picture.
        num_steps, eta, guidance: of sampling here, where they differ from training's; at eta 0 there is no KL.
    """

    def __init__(
        self,
        run_dir: str,
        rewards: dict[str, RewardModel],
        prompts: PromptSets,
        tower: RewardModel,
        judge: str | None,
        samples_per_prompt: int,
        every: int,
        held_out_samples_per_prompt: int = 2,
        kl_samples: int = 64,
        lpips_network: Network | None = None,
        grid_pictures: int = 32,
        keep_weights: bool = False,
        max_prompts: int | None = None,
        seed: int = 0,
        judges: list[str] | None = None,
        num_steps: int | None = None,
        eta: float | None = None,
        guidance: float | None = None,
    ):
        if min(every, samples_per_prompt, held_out_samples_per_prompt, kl_samples, max_prompts or 1) < 1:
            raise UserError(
                "evaluation: every, kl_samples, max_prompts and both samples_per_prompt must be at least 1."
            )
        if (num_steps is not None and num_steps < 1) or min(eta or 0, guidance or 0, grid_pictures) < 0:
            raise UserError(
                "evaluation: num_steps must be at least 1, eta, guidance and grid_pictures must not be negative."
            )
        self.conditions = Conditions(num_steps=num_steps, eta=eta, guidance=guidance)
        self.judges = judges or []
        self.every, self.gallery, self.judge = every, Gallery(Path(run_dir) / "samples", grid_pictures), judge
        self.rewards, self.tower, self.kl_samples = rewards, tower, kl_samples
        self.lpips = lpips(lpips_network) if lpips_network else None
        self.sets: list[EvaluationSet] = []
        sources = {
            "eval": (prompts.train, samples_per_prompt),
            "held_out": (prompts.held_out, held_out_samples_per_prompt),
        }
        for k, (name, (chosen, each)) in enumerate(sources.items()):
            repeated = [prompt for _ in range(each) for prompt in spread(chosen, max_prompts)]
            seeds = [seed_of(seed, i, EVALUATION_STREAM + k) for i in range(len(repeated))]
            if repeated:
                self.sets.append(EvaluationSet(name, repeated, seeds, lender=next(iter(self.sets), None)))
        self.averaged = [part.of_averaged() for part in self.sets]
        self.weights = Path(run_dir) / "weights" if keep_weights else None
        self.seconds = 0.0
        self.history: list[Metrics] = []

    def state_dict(self) -> dict[str, Any]:
        return {
            "sets": [part.state() for part in self.sets],
            "averaged_peaks": [part.peak for part in self.averaged],
            "history": self.history,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.sets, state_dict["sets"], strict=True):
            part.base, part.base_features, part.peak = state["base"], state["base_features"], state["peak"]
        for part, peak in zip(self.averaged, state_dict.get("averaged_peaks", []), strict=False):  # else of before them
            part.peak = peak
        self.history, self.seconds = state_dict["history"], state_dict["seconds"]

    def on_train_start(self, trainer: Trainer, pl_module: Learner) -> None:
        for model in (*self.rewards.values(), self.tower, *([self.lpips] if self.lpips else [])):
            model.to(pl_module.device)  # all but the trained one are part of no module
        if not self.history:
            self.evaluate(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Learner, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if pl_module.iteration % self.every == 0 or trainer.is_last_batch:
            self.evaluate(trainer, pl_module)
            if self.weights is not None and trainer.is_global_zero:
                kept = self.weights / f"checkpoint-{pl_module.iteration}"
                keep_weights(kept, pl_module, reward_queries=pl_module.reward_queries)

    def evaluate(self, trainer: Trainer, pl_module: Learner) -> None:
        """Measures the policy as it is now, and logs the row.

        Raises TrainingError where a picture or a score is not finite.
        """
        start = time.perf_counter()
        pictures = sum(len(part.prompts) for part in self.sets) // pl_module.ranks.world
        with Bar("evaluation", pictures, of="pictures"), pl_module.drawn_from.sampling(**self.conditions):
            metrics = self._measure(trainer, pl_module)
            metrics |= self._areas(metrics)
            if pl_module.averaged is not None:
                with pl_module.policy.holding(pl_module.averaged):
                    metrics |= self._measure_averaged(trainer, pl_module)
        self.history.append(pl_module.record("evaluation", metrics))
        self.seconds += time.perf_counter() - start

    def _measure(self, trainer: Trainer, pl_module: Learner) -> Metrics:
        metrics: Metrics = {}
        for part in self.sets:
            rollout, scores = self._sampled(trainer, pl_module, part)
            metrics |= part.compare(scores, pl_module.reward_name, self.judges)
            if part.name == "eval":
                metrics |= self._pictures(part, rollout.images, pl_module.ranks)
                metrics |= self._kl(pl_module, rollout, len(part.prompts))
                self._show(trainer, pl_module, part, rollout, scores)
        return metrics

    def _measure_averaged(self, trainer: Trainer, pl_module: Learner) -> Metrics:
        """Of the policy, which holds the averaged weights: gains on the same prompts and seeds, KL, and pictures."""
        metrics: Metrics = {}
        for raw, part in zip(self.sets, self.averaged, strict=True):
            rollout, scores = self._sampled(trainer, pl_module, part)
            part.base = raw.base
            metrics |= part.compare(scores, pl_module.reward_name, self.judges)
            if raw.name == "eval":
                kl = self._kl(pl_module, rollout, len(part.prompts))
                metrics |= {f"kl_ema/{key}": kl[f"kl/{key}"] for key in ("trajectory", "sqrt") if kl}
                part.base_features = raw.base_features
                drawn = self._pictures(part, rollout.images, pl_module.ranks)
                metrics |= {key.replace("pictures/", "pictures_ema/"): value for key, value in drawn.items()}
        return metrics

    def _sampled(self, trainer: Trainer, pl_module: Learner, part: EvaluationSet) -> tuple[Rollout, dict[str, Tensor]]:
        """This rank's pictures, and the scores of all ranks'."""
        ranks, where = pl_module.ranks, f"in the evaluation after iteration {pl_module.iteration}"
        own = ranks.part(len(part.prompts))
        with trainer.precision_plugin.forward_context():  # as in training
            rollout = pl_module.drawn_from.sample(part.prompts[own], part.seeds[own])
        pl_module.check_pictures(rollout.images, where)
        scores = {
            name: ranks.gather(reward.score(rollout.images, rollout.prompts)).cpu()
            for name, reward in self.rewards.items()
        }
        for name, values in scores.items():
            pl_module.check_scores(name, values, where)
        return rollout, scores

    def _show(
        self,
        trainer: Trainer,
        pl_module: Learner,
        part: EvaluationSet,
        rollout: Rollout,
        scores: dict[str, Tensor],
    ) -> None:
        if not self.gallery.pictures:
            return
        start = pl_module.ranks.part(len(part.prompts)).start
        shown = pl_module.ranks.gather(rollout.images[: max(0, self.gallery.pictures - start)])
        if trainer.is_global_zero:
            self.gallery.show(trainer, pl_module, shown, part.prompts, part.seeds, scores)
            if pl_module.iteration > 0:
                gains = part.gains(scores)
                self.gallery.show_hacks(trainer, pl_module, part.prompts, part.seeds, gains, self.judge)

    def _areas(self, now: Metrics) -> Metrics:
        """Area under each reward's gain over sqrt(KL), up to here; nothing where there is no KL."""
        if "kl/sqrt" not in now:
            return {}
        rows = [*self.history, now]
        names = [key.split("/")[1] for key in now if key.startswith("eval/") and key.endswith("/gain")]
        known = {name: [(row["kl/sqrt"], row[f"eval/{name}/gain"]) for row in rows] for name in names}
        return {f"eval/{name}/kl_area": area_under(points) for name, points in known.items()}

    @torch.no_grad()
    def _pictures(self, part: EvaluationSet, images: Tensor, ranks: Ranks) -> Metrics:
        """Diversity within prompts, drift from the base, and the statistics that hacks move; `images` are this rank's.

        The metrics add up over ranks by themselves.
        """
        features = torch.cat([self.tower.embed_images(chunk) for chunk in images.split(256)])
        part.base_features = ranks.gather(features) if part.base_features is None else part.base_features.to(features)
        own = ranks.part(len(part.prompts))
        where = meeting_place(ranks, images.device)
        diversity, drift = WithinPromptDiversity().to(where), DriftFromBase().to(where)
        statistics = PictureStatistics().to(where)
        names = {prompt: k for k, prompt in enumerate(dict.fromkeys(part.prompts))}
        concepts = torch.tensor([names[prompt] for prompt in part.prompts[own]])
        diversity.update(features.to(where), concepts.to(where))
        drift.update(features.to(where), part.base_features[own].to(where))
        statistics.update(images.to(where))
        values = {**diversity.compute(), "drift": drift.compute(), **statistics.compute()}
        if self.lpips:
            values["lpips"] = lpips_within(ranks.gather(images), part.prompts, self.lpips)
        return {f"pictures/{key}": value for key, value in values.items()}

    def _kl(self, pl_module: Learner, rollout: Rollout, n: int) -> Metrics:
        """On `kl_samples` trajectories spread evenly over the n of all ranks; nothing where steps have no density."""
        if not pl_module.drawn_from.has_density:
            return {}
        where = meeting_place(pl_module.ranks, pl_module.device)
        kl = TrajectoryKL(pl_module.policy.num_steps).to(where)
        rows = torch.linspace(0, n - 1, min(n, self.kl_samples)).round().long()
        own = rows[pl_module.ranks.own(rows, n)] - pl_module.ranks.part(n).start
        if len(own):
            kl.update(pl_module.policy.kl_to_base(rollout.of(own)).to(where))
        return {f"kl/{key}": value for key, value in kl.compute().items()}


def spread(prompts: list[str], most: int | None) -> list[str]:
    """At most so many of them, at even distances."""
    if most is None or most >= len(prompts):
        return prompts
    return [prompts[k * len(prompts) // most] for k in range(most)]


def meeting_place(ranks: Ranks, device: torch.device) -> torch.device:
    """Where a metric lives: ranks meet on their devices; else on the CPU, for not every device adds up in float64."""
    return device if ranks.world > 1 else torch.device("cpu")
