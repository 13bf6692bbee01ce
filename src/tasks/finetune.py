"""Fine-tunes a policy on a reward: builds the run from its configuration, begins it or goes on, and sums it up."""

import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning
import torch
from omegaconf import DictConfig

from src.algorithms.base import Algorithm
from src.callbacks.checkpoints import harmless_contents
from src.callbacks.evaluation import CrossRewardEvaluation
from src.callbacks.watch import OveroptimizationWatch
from src.errors import UserError, first_line
from src.finetuner import PHASES, RewardFinetuner
from src.loggers.tracker import tell_where_to_look
from src.prompts import PromptData, check_prompts
from src.ranks import Ranks, process_rank
from src.report.page import write_report
from src.report.runs import find_runs
from src.runs.folder import open_run_dir, versions, weights_in, write_json
from src.runs.resuming import command_to_resume
from src.screen import quieten, show
from src.tasks.building import build, build_callback, build_finetuner, build_rewards, build_trainer, trainer_faults
from src.tasks.outcome import kl_sentence, outcome_table
from src.tasks.session import fit, new_run, session, stored_run, told_to_ranks
from src.texts import warn_of_cut


def run(composed: DictConfig) -> dict[str, Any]:
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
    check_prompts(judges.values(), [*prompts.train, *prompts.held_out], prompts.places)
    check_gradient(finetuner, prompts.train[0])
    warn_of_cut({"the policy": finetuner.policy, **rewards, **judges}, [*prompts.train, *prompts.held_out])
    if (cfg["objective"] or "").startswith("held_out/") and not prompts.held_out:
        raise UserError(f"objective={cfg['objective']}: these prompts hold none out; choose eval/... instead.")
    evaluation = build(cfg["evaluation"], _partial_=True)(
        run_dir=str(folder),
        rewards=rewards | judges,
        prompts=prompts,
        judge=next(iter(judges), None),
        judges=list(judges),
    )
    callbacks = [evaluation, *(build_callback(options, folder) for options in cfg["callbacks"].values())]
    path = folder / "checkpoints" / "last.ckpt"
    checkpoint = load_checkpoint(path)
    if process_rank() == 0:
        open_run_dir(folder, cfg, finetuner.checkpoint_bytes())
        print(f"run folder: {folder}", flush=True)
    progress: dict[str, Any] = checkpoint["progress"] if checkpoint else {"iteration": -1, "phase_seconds": {}}
    iteration = progress["iteration"]
    trainer = build_trainer(cfg, folder, callbacks, iteration)
    check_ranks(trainer, min(cfg["samples_per_iteration"], *(len(part.prompts) for part in evaluation.sets)))
    check_pairs(cfg, finetuner.algorithm, trainer.world_size)
    started = time.perf_counter()
    stopped = progress.get("stopped") and not (folder / "summary.json").exists()  # and killed before its end
    if checkpoint and (iteration >= cfg["iterations"] or stopped):
        print(f"nothing is left to do after iteration {iteration} but to sum up; a higher iterations= would go on.")
        restore_finished(checkpoint, finetuner, callbacks)
    else:
        if trainer.is_global_zero:
            (folder / "summary.json").unlink(missing_ok=True)  # it tells a run that is over, and this one goes on
        with told_to_ranks(folder), harmless_contents(), trainer_faults():
            fit(trainer, finetuner, data, ckpt_path=str(path) if checkpoint else None, weights_only=True)
    if not trainer.is_global_zero:
        return {}
    weights = finetuner.policy.save(folder, finetuner.averaged)
    before = sum(progress["phase_seconds"].values())
    watches = [c for c in callbacks if isinstance(c, OveroptimizationWatch)]
    seconds = time.perf_counter() - started
    summary = summarise(folder, finetuner, evaluation, watches, cfg["name"], seconds, before)
    for watch in watches:
        print(f"watch: {watch.sentence()}")
    for part in (finetuner.reset, finetuner.regulariser):
        if unmet := part.unmet(finetuner.iteration):
            print(f"warning: {unmet}", file=sys.stderr)
    print(f"pictures: {folder / 'samples'}   metrics: {folder / 'metrics.jsonl'}   weights: {weights}")
    print(f"report: {write_report(find_runs([str(folder)]), folder / 'report.html')}")
    tell_where_to_look(trainer.loggers)
    return summary


def check_ranks(trainer: lightning.Trainer, samples: int) -> None:
    """Raises UserError on more processes than there is work for, or where they cannot be started."""
    if trainer.world_size > samples:
        raise UserError(
            f"trainer.devices: {trainer.world_size} processes are more than the {samples} samples they share."
        )


def check_pairs(cfg: dict[str, Any], algorithm: Algorithm, world: int) -> None:
    """Raises UserError where samples of one prompt would be pairs, and lie on different ranks."""
    samples, group, name = cfg["samples_per_iteration"], cfg["samples_per_prompt"], type(algorithm).__name__
    parted = any(Ranks(rank, world).part(samples).start % group for rank in range(world))
    if algorithm.pairs and world > 1 and parted:
        raise UserError(
            f"trainer.devices: {world} processes would hold samples of one prompt apart, and {name} pairs them: let "
            f"samples_per_iteration={samples} be a multiple of {world * group}, processes times samples_per_prompt."
        )


def check_gradient(finetuner: RewardFinetuner, prompt: str) -> None:
    """Raises UserError where an algorithm follows the reward's gradient and the reward has none."""
    if finetuner.algorithm.gradients_a_sample and not finetuner.reward.has_gradient(prompt):
        raise UserError(
            f"train_reward={finetuner.reward_name}: {type(finetuner.reward).__name__} has no gradient with respect to "
            "the picture; choose another reward, or an algorithm that needs none, such as algorithm=ddpo."
        )


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The checkpoint to go on from, if there is one. Raises UserError if it cannot be read."""
    if not path.exists():
        return None
    try:
        with harmless_contents():
            checkpoint = torch.load(path, weights_only=True, map_location="cpu")
        assert "progress" in checkpoint
    except Exception as error:
        folder = path.parent.parent
        raise UserError(
            f"{path} is not a readable checkpoint ({first_line(error)}): put a copy of an earlier one there, or remove "
            f"it, and {command_to_resume(folder)} begins anew with the same configuration{weights_in(folder)}."
        ) from error
    return checkpoint


def restore_finished(
    checkpoint: dict[str, Any], finetuner: RewardFinetuner, callbacks: Iterable[lightning.Callback]
) -> None:
    """The state of a run that was killed after its last iteration, so that its results can still be written."""
    finetuner.load_state_dict(checkpoint["state_dict"], strict=False)
    finetuner.on_load_checkpoint(checkpoint)
    for callback in callbacks:
        if callback.state_key in checkpoint["callbacks"]:
            callback.load_state_dict(checkpoint["callbacks"][callback.state_key])


def summarise(
    folder: Path,
    finetuner: RewardFinetuner,
    evaluation: CrossRewardEvaluation,
    watches: Iterable[OveroptimizationWatch],
    experiment: str,
    wall_seconds: float,
    trained_before: float,
) -> dict[str, Any]:
    """Writes summary.json and prints the outcome: gains over the base, throughput, where the time went.

    `trained_before` are the seconds of training that earlier sessions of the run had spent.
    """
    phases, training = finetuner.phase_seconds, sum(finetuner.phase_seconds.values())
    rollout = finetuner.samples // max(finetuner.iteration, 1), len(finetuner.trained_steps())
    steps = finetuner.iteration * finetuner.algorithm.rows_trained(*rollout)
    name = finetuner.reward_name
    summary = {
        "experiment": experiment,
        "iterations": finetuner.iteration,
        "reward_queries": finetuner.reward_queries,
        "reward_gradients": finetuner.reward_gradients,
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
    for watch in watches:
        summary |= watch.fell
    write_json(folder / "summary.json", summary)
    print_summary(summary)
    return summary


def print_summary(summary: dict[str, Any]) -> None:
    """Prints gains over the base, throughput, and where the time went."""
    final = summary["final"]
    title = f"{summary['experiment']} after {summary['reward_queries']} reward queries"
    show(outcome_table(final, summary["train_reward"], title))
    if any(key.startswith("eval_ema/") for key in final):
        show(outcome_table(final, summary["train_reward"], "the same of averaged weights (ema/)", "_ema"))
    shares = ", ".join(f"{phase} {share:.0%}" for phase, share in summary["share_of_training_time"].items())
    print(
        f"{summary['trajectory_steps_per_second']:.0f} trajectory-steps trained per second "
        f"({summary['iterations_per_minute']:.1f} iterations a minute): {shares}; "
        f"evaluation, logging and checkpoints took {summary['overhead_of_this_session']:.0%} of the time; "
        f"{kl_sentence(final)}"
    )
