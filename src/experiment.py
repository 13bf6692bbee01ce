"""Builds a run from its configuration, runs it, and sums it up."""

import functools
import inspect
import logging
import os
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import lightning
import torch
import wandb
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from src.callbacks.checkpoints import Checkpoints
from src.callbacks.evaluation import CrossRewardEvaluation
from src.callbacks.progress import RunProgress
from src.callbacks.watch import OveroptimizationWatch
from src.config import check
from src.errors import UserError
from src.finetuner import PHASES, RewardFinetuner
from src.loggers.jsonl import JsonlLogger
from src.prompts import PromptData
from src.report.page import write_report
from src.report.runs import find_runs
from src.rewards.base import RewardModel
from src.run_folder import (
    FOLDER_TOLD,
    HOW,
    find_run,
    held,
    new_run_dir,
    open_run_dir,
    stored_config,
    versions,
    write_json,
)
from src.screen import show
from src.seeding import CRITIC_STREAM, seed_of
from src.sweeps import group_and_tags, in_sweep

POOL = "pool"  # folder of best-of-n's samples, while they are drawn


def run_experiment(composed: DictConfig) -> dict[str, Any]:
    """One run from composition to summary; returns the summary."""
    quieten()
    cfg, folder = stored_run(composed) if composed.resume else new_run(composed, "custom")
    with session(folder):
        return fine_tune(cfg, folder)


def fine_tune(cfg: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Builds the run, begins it or goes on with it, and sums it up."""
    finetuner, rewards = build_finetuner(cfg)
    prompts = build(cfg["prompts"])
    data = PromptData(prompts.train, cfg["samples_per_iteration"], cfg["samples_per_prompt"], cfg["seed"])
    judges = build_rewards(cfg["suite"]["judges"] or {})
    for judge in judges.values():
        judge.check_prompts([*prompts.train, *prompts.held_out])
    if (cfg["objective"] or "").startswith("held_out/") and not prompts.held_out:
        raise UserError(f"objective={cfg['objective']}: these prompts hold none out; choose eval/... instead.")
    evaluation = build(cfg["evaluation"], _partial_=True)(
        run_dir=str(folder), rewards=rewards | judges, prompts=prompts, judge=next(iter(judges), None)
    )
    callbacks = [evaluation, *(build_callback(options, folder) for options in cfg["callbacks"].values())]
    path = folder / "checkpoints" / "last.ckpt"
    checkpoint = load_checkpoint(path)
    if rank_zero_only.rank == 0:
        open_run_dir(folder, cfg, finetuner.checkpoint_bytes())
        print(f"run folder: {folder}", flush=True)
    trainer = build_trainer(cfg, folder, callbacks)
    check_ranks(trainer, min(cfg["samples_per_iteration"], *(len(part.prompts) for part in evaluation.sets)))
    progress = checkpoint["progress"] if checkpoint else {"iteration": -1, "phase_seconds": {}}
    iteration = progress["iteration"]
    if trainer.is_global_zero:
        trainer.loggers[0].forget_after(iteration)
    started = time.perf_counter()
    stopped = progress.get("stopped") and not (folder / "summary.json").exists()  # and killed before its end
    if iteration >= cfg["iterations"] or stopped:
        print(f"nothing is left to do after iteration {iteration} but to sum up; a higher iterations= would go on.")
        restore_finished(checkpoint, finetuner, trainer)
    else:
        if trainer.is_global_zero:
            (folder / "summary.json").unlink(missing_ok=True)  # it tells a run that is over, and this one goes on
        with told_to_ranks(folder):
            trainer.fit(finetuner, data, ckpt_path=str(path) if checkpoint else None, weights_only=False)
    if not trainer.is_global_zero:
        return {}
    weights = finetuner.policy.save(folder)
    before = sum(progress["phase_seconds"].values())
    summary = summarise(folder, finetuner, evaluation, cfg["name"], time.perf_counter() - started, before)
    for watch in (c for c in trainer.callbacks if isinstance(c, OveroptimizationWatch)):
        print(f"watch: {watch.sentence()}")
    print(f"pictures: {folder / 'samples'}   metrics: {folder / 'metrics.jsonl'}   weights: {weights}")
    print(f"report: {write_report(find_runs([str(folder)]), folder / 'report.html')}")
    return summary


def new_run(composed: DictConfig, fallback_name: str) -> tuple[dict[str, Any], Path]:
    """The checked configuration of a run that begins, and the folder it will have; nothing is written yet."""
    cfg = check(composed)
    cfg["name"] = cfg["name"] or HydraConfig.get().runtime.choices.get("experiment") or fallback_name
    folder = folder_told(cfg) or new_run_dir(cfg)
    cfg["run_dir"] = str(folder)
    set_threads(cfg)
    return cfg, folder


def stored_run(composed: DictConfig) -> tuple[dict[str, Any], Path]:
    """The configuration of a run that goes on, and its folder. Raises UserError on one that cannot."""
    folder = find_run(composed.resume)
    if in_sweep():  # which has compared what makes the experiment; how it is run is for the command to say
        wanted: Any = OmegaConf.to_container(composed, resolve=True)
        stored = stored_config(folder, []) | {key: wanted[key] for key in HOW}
    else:
        stored = stored_config(folder, list(HydraConfig.get().overrides.task))
    cfg = check(DictConfig(stored))
    set_threads(cfg)
    return cfg, folder


def folder_told(cfg: dict[str, Any]) -> Path | None:
    """The run folder of a rank that did not choose it. Raises UserError if nobody told it."""
    if FOLDER_TOLD in os.environ:
        return Path(os.environ[FOLDER_TOLD])
    launched = any(int(os.environ.get(key, 1)) > 1 for key in ("WORLD_SIZE", "SLURM_NTASKS"))
    if launched and cfg["trainer"].get("devices", 1) not in (1, "1") and not cfg["run_dir"]:
        raise UserError(
            "run_dir= is needed where torchrun or srun starts the processes: they must agree on the folder."
        )
    return Path(cfg["run_dir"]) if rank_zero_only.rank else None


@contextmanager
def told_to_ranks(folder: Path) -> Iterator[None]:
    """Within, processes that Lightning starts are told which folder is the run's."""
    os.environ[FOLDER_TOLD] = str(folder)
    try:
        yield
    finally:
        del os.environ[FOLDER_TOLD]


def check_ranks(trainer: lightning.Trainer, samples: int) -> None:
    """Raises UserError on more processes than there is work for, or where they cannot be started."""
    if trainer.world_size > samples:
        raise UserError(
            f"trainer.devices: {trainer.world_size} processes are more than the {samples} samples they share."
        )


def set_threads(cfg: dict[str, Any]) -> None:
    if cfg["threads"]:
        torch.set_num_threads(cfg["threads"])


@contextmanager
def session(folder: Path) -> Iterator[None]:
    """Keeps the folder for this process, ends W&B's run whatever happens, and removes the folder if none began."""
    first = rank_zero_only.rank == 0
    with held(folder) if first else nullcontext():
        failed = True
        try:
            yield
            failed = False
        except Exception:
            if first and not any((folder / name).exists() for name in ("metrics.jsonl", POOL)):
                shutil.rmtree(folder, ignore_errors=True)  # the mended command can use the same folder
            raise
        finally:
            wandb.finish(exit_code=int(failed))  # a sweep's next run is a run of its own


build = functools.partial(instantiate, _convert_="all")  # components get plain lists and dicts


def quieten() -> None:
    """Leaves on the screen what a user needs."""
    import diffusers.utils.logging
    import transformers.utils.logging

    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", module="torch.utils._pytree")


def build_finetuner(cfg: dict[str, Any]) -> tuple[RewardFinetuner, dict[str, RewardModel]]:
    """The LightningModule of a run, and every reward of its suite by name, the trained one among them."""
    algorithm, reset = build(cfg["algorithm"]), build(cfg["reset"])
    lightning.seed_everything(cfg["seed"], verbose=False)
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


def build_rewards(configs: dict[str, Any]) -> dict[str, RewardModel]:
    """Rewards, or judges, of a suite by name. A member of an ensemble that is one of them is that one, not a copy."""
    built: dict[str, RewardModel] = {}
    for name, config in sorted(configs.items(), key=lambda item: "members" in item[1]):
        if "members" in config:
            names = [next((n for n in built if configs[n] == member), None) for member in config["members"]]
            members = [built[n] if n else build(m) for n, m in zip(names, config["members"], strict=True)]
            built[name] = build({key: value for key, value in config.items() if key != "members"}, members=members)
        else:
            built[name] = build(config)
    return {name: built[name] for name in configs}


def build_loggers(cfg: dict[str, Any], folder: Path) -> list[Logger]:
    """metrics.jsonl and W&B, the second grouped and tagged so that runs are found again; rank 0 alone writes."""
    if rank_zero_only.rank != 0:
        return []
    group, swept = group_and_tags() if in_sweep() else (cfg["name"], [])
    tags = list(dict.fromkeys([cfg["name"], cfg["suite"]["name"], cfg["train_reward"], *reset_tags(cfg), *swept]))
    tracker = build(cfg["logger"], _partial_=True)(run_dir=folder, group=group, tags=tags, config=cfg)
    return [JsonlLogger(folder / "metrics.jsonl"), tracker]


def reset_tags(cfg: dict[str, Any]) -> list[str]:
    """What a run resets, and how much of it: reset=active, reset.ratio=0.5."""
    name = cfg["reset"]["_target_"].rsplit(".", 1)[-1].removesuffix("Reset").lower()
    if cfg["task"] != "finetune" or name == "no":
        return []
    return [f"reset={name}"] + ([f"reset.ratio={cfg['reset']['ratio']}"] if name != "full" else [])


def build_callback(options: dict[str, Any], folder: Path) -> lightning.Callback:
    """A callback of the configuration; it is told the run folder if it asks for one."""
    wants_folder = "run_dir" in inspect.signature(get_object(options["_target_"])).parameters
    return build(options, **({"run_dir": str(folder)} if wants_folder else {}))


def build_trainer(cfg: dict[str, Any], folder: Path, callbacks: list[lightning.Callback]) -> lightning.Trainer:
    return trainer_of(
        cfg,
        limit_train_batches=cfg["iterations"],
        logger=build_loggers(cfg, folder),
        callbacks=[
            *callbacks,
            RunProgress(cfg["iterations"]),
            Checkpoints(str(folder), cfg["checkpoint_every"]),  # last, so that it saves what the others have done
        ],
    )


def trainer_of(cfg: dict[str, Any], **options: Any) -> lightning.Trainer:
    """Lightning's Trainer of the configuration. Raises UserError on devices that are not there."""
    try:
        return build(cfg["trainer"], **options)
    except InstantiationException as error:
        if isinstance(error.__cause__, MisconfigurationException | ImportError):  # or what they need is not
            raise UserError(f"trainer: {str(error.__cause__).strip().splitlines()[0]}") from error
        raise


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The checkpoint to go on from, if there is one. Raises UserError if it cannot be read."""
    if not path.exists():
        return None
    try:
        checkpoint = torch.load(path, weights_only=False, map_location="cpu")
        assert "progress" in checkpoint
    except Exception as error:
        raise UserError(f"{path} is not a readable checkpoint ({type(error).__name__}).") from error
    return checkpoint


def restore_finished(checkpoint: dict[str, Any], finetuner: RewardFinetuner, trainer: lightning.Trainer) -> None:
    """The state of a run that was killed after its last iteration, so that its results can still be written."""
    finetuner.load_state_dict(checkpoint["state_dict"], strict=False)
    finetuner.on_load_checkpoint(checkpoint)
    for callback in trainer.callbacks:
        if callback.state_key in checkpoint["callbacks"]:
            callback.load_state_dict(checkpoint["callbacks"][callback.state_key])


def summarise(
    folder: Path,
    finetuner: RewardFinetuner,
    evaluation: CrossRewardEvaluation,
    experiment: str,
    wall_seconds: float,
    trained_before: float,
) -> dict[str, Any]:
    """Writes summary.json and prints the outcome: gains over the base, throughput, where the time went.

    `trained_before` are the seconds of training that earlier sessions of the run had spent.
    """
    phases, training = finetuner.phase_seconds, sum(finetuner.phase_seconds.values())
    algorithm = finetuner.algorithm
    steps_a_sample = algorithm.trained_steps(finetuner.policy.num_steps) * algorithm.inner_epochs
    steps = finetuner.reward_queries * steps_a_sample
    name = finetuner.reward_name
    summary = {
        "experiment": experiment,
        "iterations": finetuner.iteration,
        "reward_queries": finetuner.reward_queries,
        "optimizer_steps": finetuner.optimizer_steps,
        "train_reward": name,
        "final": evaluation.history[-1],
        "trajectory_steps_per_second": steps / max(training, 1e-9),
        "iterations_per_minute": 60 * finetuner.iteration / max(training, 1e-9),
        "training_seconds": training,
        "evaluation_seconds": evaluation.seconds,
        "wall_seconds_of_this_session": wall_seconds,
        "overhead_of_this_session": max(0.0, 1 - (training - trained_before) / max(wall_seconds, 1e-9)),
        "share_of_training_time": {phase: phases[phase] / max(training, 1e-9) for phase in PHASES},
        "versions": versions(),
    }
    write_json(folder / "summary.json", summary)
    print_summary(summary)
    return summary


def print_summary(summary: dict[str, Any]) -> None:
    final = summary["final"]
    table = Table(title=f"{summary['experiment']} after {summary['reward_queries']} reward queries")
    for column in ("reward", "mean", "gain [base sd]", "95% interval", "below peak", "win rate", "held-out gain"):
        table.add_column(column, justify="right")
    for key in final:
        if key.startswith("eval/") and key.endswith("/gain"):
            name = key.split("/")[1]
            measures = ("mean", "gain", "gain_low", "gain_high", "below_peak", "win_rate")
            value = {measure: final[f"eval/{name}/{measure}"] for measure in measures}  # all, where there is a gain
            held_out = final.get(f"held_out/{name}/gain")
            table.add_row(
                f"{name} (trained)" if name == summary["train_reward"] else name,
                f"{value['mean']:.3f}",
                f"{value['gain']:+.2f}",
                f"{value['gain_low']:+.2f} .. {value['gain_high']:+.2f}",
                f"{value['below_peak']:.2f}",
                f"{value['win_rate']:.2f}",
                "-" if held_out is None else f"{held_out:+.2f}",
            )
    show(table)
    shares = ", ".join(f"{phase} {share:.0%}" for phase, share in summary["share_of_training_time"].items())
    print(
        f"{summary['trajectory_steps_per_second']:.0f} trajectory-steps trained per second "
        f"({summary['iterations_per_minute']:.1f} iterations a minute): {shares}; "
        f"evaluation, logging and checkpoints took {summary['overhead_of_this_session']:.0%} of the time; "
        f"KL from the base {final['kl/trajectory']:.1f} nats"
    )
