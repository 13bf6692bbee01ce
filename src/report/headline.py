"""What became of a run, in a sentence or two of plain words."""

from src.overrides import choice_of
from src.report.runs import Row, Run, flat

FEW = 10  # prompts


def headline(run: Run, judge: str = "gold") -> str:
    """The outcome: of the trained reward, of the judge, and of the judge on prompts that no run trains on."""
    return f"{_outcome(run, judge)} {too_few(run)}".rstrip()


def too_few(run: Run) -> str:
    """A doubt, where a handful of prompts was looked at, as by +debug=tiny; else empty."""
    prompts = flat(run.config).get("evaluation.max_prompts") or FEW
    return f"Measured on {prompts} prompts alone: too few to say anything." if prompts < FEW else ""


def _outcome(run: Run, judge: str) -> str:
    last = run.evaluations[-1]
    if run.trained is None:
        return _of_unknown(run)
    proxy = last.get(f"eval/{run.trained}/gain")
    if proxy is None:
        return f"The base's pictures do not differ in the trained reward ({run.trained}): it has no gain to tell."
    if len(run.evaluations) == 1:
        return f"Only the base model has been evaluated so far; training on {run.trained} has yet to move it."
    start = _outset(run, proxy)
    if f"eval/{judge}/gain" not in last:
        return f"{start}; this suite has no {judge} judge to say what became of the truth."
    gains = run.series(f"eval/{judge}/gain")
    if run.is_frontier:
        return f"{start}; {judge} is highest {_highest(run, gains)}."
    return f"{start}; {judge} {_course(run, judge, gains, proxy)}.{_held_out(run, judge)}"


def _course(run: Run, judge: str, gains: list[float | int], proxy: float | int) -> str:
    """What became of the judge while the trained reward gained `proxy`."""
    peak = max(range(len(gains)), key=lambda k: gains[k])
    if peak == len(gains) - 1:
        if still := _unmoved(run.evaluations[-1], f"eval/{judge}"):
            return still
        with_it = "rose with it" if proxy >= 0 else "rose nevertheless"
        return f"{with_it} to {gains[-1]:+.1f} and has not fallen yet"
    where = f"was highest {run.told(0)}" if peak == 0 else f"peaked {run.told(peak)} ({gains[peak]:+.2f})"
    return f"{where} and had lost {gains[peak] - gains[-1]:.1f} base sd at the end"


def _unmoved(row: Row, key: str) -> str:
    """Where the interval of a gain holds 0, that it did not move; else nothing."""
    gain, low, high = (row.get(f"{key}/{part}") for part in ("gain", "gain_low", "gain_high"))
    if low is None or high is None or not low <= 0 <= high:
        return ""
    return f"did not move ({gain:+.2f}, interval {low:+.2f} to {high:+.2f})"


def _held_out(run: Run, judge: str) -> str:
    """A sentence on the judge's gain on held-out prompts; nothing of a control, or where it was not measured."""
    gains, row = run.series(f"held_out/{judge}/gain"), run.evaluations[-1]
    if run.is_control or f"held_out/{judge}/gain" not in row:
        return ""
    low, high = (row.get(f"held_out/{judge}/{part}") for part in ("gain_low", "gain_high"))
    interval = "" if low is None or high is None else f" [{low:+.2f}, {high:+.2f}]"
    peak = max(range(len(gains)), key=lambda k: gains[k])
    highest = "its highest" if peak == len(gains) - 1 else f"highest {run.told(peak)} ({gains[peak]:+.2f})"
    return f" On prompts that no run trains on {judge} ends at {gains[-1]:+.2f}{interval}, {highest}."


def _of_unknown(run: Run) -> str:
    """Of weights of which nobody knows what they were trained on: what became of every reward."""
    if len(run.evaluations) == 1:
        return "Only the base model has been evaluated so far."
    last = run.evaluations[-1]
    gains = [f"{name} {last[key]:+.1f}" for name in run.rewards if (key := f"eval/{name}/gain") in last]
    told = run.told(len(run.evaluations) - 1)
    return (
        f"Gains over the base {told}, in base sd: {', '.join(gains)}; what was trained on is not known (train_reward=)."
    )


def _outset(run: Run, proxy: float | int) -> str:
    """What became of the trained reward, by how the run is laid out."""
    queries = run.evaluations[-1]["reward_queries"]
    if run.is_best_of_n:
        most = run.places[-1] if run.x is None else run.evaluations[-1]["best_of_n/n"]
        return f"Choosing the best of up to {most:,} base samples by {run.trained} raised it by {proxy:.1f} base sd"
    if run.is_control:
        how = {"code": "block by block", "das": "with particles that follow its gradient"}[run.config["task"]]
        did = "raised" if proxy >= 0 else "lowered"
        cost = f"{queries:,} queries a picture"
        return f"Drawing from the base by {run.trained} {how} {did} it by {abs(proxy):.1f} base sd, for {cost}"
    if run.is_frontier:
        gains = run.series(f"eval/{run.trained}/gain")
        return f"Of these weights the trained reward ({run.trained}) is highest {_highest(run, gains)}"
    did = f"{'rose' if proxy >= 0 else 'fell'} by {abs(proxy):.1f} base sd"
    did = _unmoved(run.evaluations[-1], f"eval/{run.trained}") or did
    if run.layout == "checkpoints":
        by = f"By checkpoint {queries:,}" if len(run.evaluations) > 2 else "In these weights"
        return f"{by} the trained reward ({run.trained}) {did}"
    return f"In {queries:,} reward queries the trained reward ({run.trained}) {did}"


def _highest(run: Run, gains: list[float | int]) -> str:
    k = max(range(len(gains)), key=lambda k: gains[k])
    return f"{run.told(k)} ({gains[k]:+.2f})"


def setting(run: Run) -> str:
    """What was trained, how long and how it was looked at, of a fine-tuning; nothing of others."""
    config = flat(run.config)
    if config.get("task", "finetune") != "finetune" or "algorithm._target_" not in config:
        return ""
    parts = [choice_of("algorithm", config["algorithm._target_"])]
    reset = choice_of("reset", config.get("reset._target_", ""))
    if reset not in ("", "reset=none"):
        parts.append(f"{reset} every {config['reset.every']} iterations")
    regulariser = choice_of("regulariser", config.get("regulariser._target_", ""))
    if regulariser not in ("", "regulariser=none"):
        parts.append(regulariser)
    parts.append(f"suite={config['suite.name']}, {config['policy.finetune']} fine-tuning")
    each = f"{config['samples_per_iteration']} pictures, {config['samples_per_prompt']} a prompt"
    parts.append(f"{config['iterations']} iterations of {each}")
    factor = config.get("lr_factor", 1)
    rising = f", rising {factor:g} times in {config['lr_ramp']} iterations" if factor != 1 else ""
    parts.append(f"learning rate {config['optimizer.lr']:g}{rising}")
    parts.append(f"seed {config['seed']}")
    looked = f"{config['evaluation.samples_per_prompt']} pictures a training prompt"
    looked += f" and {config['evaluation.held_out_samples_per_prompt']} a held-out one"
    return f"{'; '.join(parts)}. Each evaluation: {looked}."
