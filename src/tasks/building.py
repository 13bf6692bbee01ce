"""What a task builds from its configuration: rewards, finetuner, callbacks, loggers, trainer."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from src.algorithms.base import Algorithm
from src.callbacks.checkpoints import Checkpoints
from src.callbacks.progress import RunProgress
from src.callbacks.stopping import StopsAtSignals
from src.config import options_of
from src.errors import UserError, first_line
from src.finetuner import RewardFinetuner
from src.loggers.jsonl import JsonlLogger
from src.overrides import choice_of
from src.ranks import process_rank
from src.regularisers.base import Regulariser
from src.rewards.base import RewardModel
from src.rewards.building import build, build_rewards
from src.runs.launched import is_one_process
from src.runs.sweeps import group_and_tags, in_sweep
from src.seeding import CRITIC_STREAM, seed_of


def build_finetuner(cfg: dict[str, Any]) -> tuple[RewardFinetuner, dict[str, RewardModel]]:
    """The LightningModule of a run, and every reward of its suite by name, the trained one among them."""
    algorithm, reset = build(cfg["algorithm"]), build(cfg["reset"])
    algorithm.group_size = cfg["samples_per_prompt"]
    lightning.seed_everything(cfg["seed"], verbose=False)
    check_combination(cfg, algorithm)
    policy = build(cfg["policy"])
    rewards = build_rewards(cfg["suite"]["rewards"])
    reward = rewards[cfg["train_reward"]]
    torch.manual_seed(seed_of(cfg["seed"], CRITIC_STREAM))  # whatever has been loaded before
    critic = build(cfg["critic"], reward=reward, policy=policy) if algorithm.uses_critic else None
    finetuner = RewardFinetuner(
        policy=policy,
        reward=reward,
        reward_name=cfg["train_reward"],
        reward_members=[name for name, model in rewards.items() if model in list(getattr(reward, "members", []))],
        algorithm=algorithm,
        critic=critic,
        reset=reset,
        regulariser=build_regulariser(cfg, rewards),
        normaliser=build(cfg["normaliser"]),
        optimizer=build(cfg["optimizer"]),
        critic_optimizer=build(cfg["critic_optimizer"]),
        microbatch=cfg["microbatch"],
        max_grad_norm=cfg["max_grad_norm"],
        seed=cfg["seed"],
        lr_factor=cfg["lr_factor"],
        lr_ramp=cfg["lr_ramp"],
        critic_epochs=cfg["critic_epochs"],
        critic_gradient_factor=cfg["critic_gradient_factor"],
        neuron_probe=cfg["neuron_probe"],
        neuron_probe_scattered=cfg["neuron_probe_scattered"],
    )
    return finetuner, rewards


def check_combination(cfg: dict[str, Any], algorithm: Algorithm) -> None:
    """Raises UserError where algorithm, regulariser and prompts do not go together."""
    name, chosen = type(algorithm).__name__, get_object(cfg["regulariser"]["_target_"])
    regulariser = choice_of("regulariser", cfg["regulariser"]["_target_"])
    if algorithm.uses_returns and cfg["samples_per_iteration"] < 2:
        raise UserError(
            f"samples_per_iteration=1: {name} compares samples, and of one that is compared with itself nothing can be "
            "learnt: give 2 or more."
        )
    if algorithm.needs_groups and cfg["samples_per_prompt"] < 2:
        raise UserError(
            f"samples_per_prompt={cfg['samples_per_prompt']}: {name} compares samples of one prompt, and there is "
            "nothing to compare with: choose samples_per_prompt=8, or 2 at least."
        )
    several = algorithm.schedule == "timestep" or algorithm.inner_epochs > 1
    if algorithm.idle_at_first and not several and algorithm.samples_per_update in (None, cfg["samples_per_iteration"]):
        raise UserError(
            f"{algorithm.idle_at_first} does nothing in the first optimizer step on a rollout, and there is no other: "
            f"choose algorithm.samples_per_update={cfg['samples_per_iteration'] // 2}, half of the samples, or "
            "algorithm.inner_epochs=2."
        )
    if algorithm.own_kl and chosen.needs_reference:
        raise UserError(
            f"{regulariser}: {name} has a KL of its own, {algorithm.own_kl}, and this would add another: choose "
            "regulariser=none or ema."
        )
    if chosen.needs_returns and not algorithm.uses_returns:
        raise UserError(
            f"{regulariser} takes its part of what a step is worth, and {name} follows the reward's "
            "gradient: choose regulariser=kl_loss."
        )
    if chosen.needs_credit and not algorithm.weighs_rows:
        raise UserError(
            f"{regulariser} weighs what a sample is worth, and {name} does not go by that: choose "
            "regulariser=kl_loss, or an algorithm such as grpo."
        )


def build_regulariser(cfg: dict[str, Any], rewards: dict[str, RewardModel]) -> Regulariser:
    """Told of the rewards that are not trained on, and of the tower that tells pictures apart, if it asks for them."""
    options, trained = cfg["regulariser"], rewards[cfg["train_reward"]]
    asked = options_of(get_object(options["_target_"]))[0]
    told: dict[str, Any] = {}
    if "auxiliaries" in asked:
        apart = [model for model in rewards.values() if not hasattr(model, "members")]
        members = list(getattr(trained, "members", [trained]))
        told["auxiliaries"] = {n: m for n, m in rewards.items() if m in apart and m not in members}
    if "tower" in asked:
        told["tower"] = build(cfg["suite"]["tower"])
    return build(options, **told)


def build_loggers(cfg: dict[str, Any], folder: Path, resumed_at: int) -> list[Logger]:
    """metrics.jsonl and the tracker, grouped and tagged there so that runs are found again; rank 0 alone writes.

    Both forget what they hold of iterations after `resumed_at`.
    """
    if process_rank() != 0:
        return []
    group, swept = group_and_tags() if in_sweep() else (cfg["name"], [])
    trained = [cfg["train_reward"]] if cfg["train_reward"] else []  # of weights of others it may not be known
    tags = list(dict.fromkeys([cfg["name"], cfg["suite"]["name"], *trained, *reset_tags(cfg), *swept]))
    metrics = JsonlLogger(folder / "metrics.jsonl")
    rows = metrics.forget_after(resumed_at)
    make_tracker = build(cfg["logger"], _partial_=True)
    tracker = make_tracker(run_dir=folder, group=group, tags=tags, config=cfg, resumed_at=resumed_at, rows=rows)
    return [metrics, tracker] if tracker else [metrics]


def reset_tags(cfg: dict[str, Any]) -> list[str]:
    """What a run resets, and how much of it: reset=active, reset.ratio=0.5."""
    chosen = choice_of("reset", cfg["reset"]["_target_"])
    if cfg["task"] != "finetune" or chosen == "reset=none":
        return []
    return [chosen] + ([f"reset.ratio={cfg['reset'].get('ratio', 1.0)}"] if chosen != "reset=full" else [])


def build_callback(options: dict[str, Any], folder: Path) -> lightning.Callback:
    """A callback of the configuration; it is told the run folder if it asks for one."""
    wants_folder = "run_dir" in inspect.signature(get_object(options["_target_"])).parameters
    return build(options, **({"run_dir": str(folder)} if wants_folder else {}))


def build_trainer(
    cfg: dict[str, Any], folder: Path, callbacks: list[lightning.Callback], resumed_at: int
) -> lightning.Trainer:
    """The trainer of a run that begins after the iteration `resumed_at`."""
    return trainer_of(
        cfg,
        limit_train_batches=cfg["iterations"],
        logger=build_loggers(cfg, folder, resumed_at),
        callbacks=[
            *callbacks,
            RunProgress(cfg["iterations"]),
            StopsAtSignals(),
            Checkpoints(str(folder), cfg["checkpoint_every"]),  # last, so that it saves what the others have done
        ],
    )


def trainer_of(cfg: dict[str, Any], **options: Any) -> lightning.Trainer:
    """Lightning's Trainer of the configuration. Raises UserError on devices that are not there.

    Under Slurm it neither queues the job again by itself nor looks for checkpoints of that.
    """
    if is_one_process(cfg["trainer"]):
        options["plugins"] = LightningEnvironment()
    elif SLURMEnvironment.detect():
        options["plugins"] = SLURMEnvironment(auto_requeue=False)
    with trainer_faults():
        return build(cfg["trainer"], default_root_dir=cfg["run_dir"], **options)


@contextmanager
def trainer_faults() -> Iterator[None]:
    """Raises UserError on options that Lightning cannot take, or whose packages are not there."""
    try:
        yield
    except MisconfigurationException as error:
        raise UserError(f"trainer: {first_line(error)}") from error
    except InstantiationException as error:
        if isinstance(error.__cause__, MisconfigurationException | ImportError | TypeError):
            raise UserError(f"trainer: {first_line(error.__cause__)}") from error
        raise
