"""Where the time of an iteration goes, and what overrides change of it: `python -m benchmarks.iteration`

python -m benchmarks.iteration --experiment ddpo_hps            another experiment
python -m benchmarks.iteration trainer.precision=bf16-mixed     the default against these overrides, in turns
python -m benchmarks.iteration --operators 15                   what PyTorch's profiler says of one iteration
python -m benchmarks.iteration --tree ../other                  against another checkout of this project
Every turn is a process of its own, whose first iteration is not counted. Prints JSON. Let nothing else run meanwhile.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
KEPT = ("seconds_per_iteration", "trained_steps_per_second", "update_share_of_matmul_rate")


def configured(experiment: str, overrides: list[str]) -> dict[str, Any]:
    """The configuration of a run of this."""
    from benchmarks.sd14 import check, composed, quieten

    quieten()
    return check(composed([f"+experiment={experiment}", *overrides]))


def timed(experiment: str, iterations: int, overrides: list[str]) -> dict[str, Any]:
    """Of this process's one run."""
    from benchmarks.sd14 import measured

    cfg = configured(experiment, overrides)
    found = measured(cfg, iterations, cfg["samples_per_iteration"])
    return {key: found[key] for key in KEPT} | {"phases": found["seconds_by_phase"]}


def operators(experiment: str, rows: int, overrides: list[str]) -> str:
    """Of a second iteration, the operators that take longest, by their own time."""
    import lightning
    from torch.profiler import ProfilerActivity, profile

    from src.prompts import PromptData
    from src.tasks.building import build, build_finetuner

    class Profiled(lightning.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            self.found = profile(activities=[ProfilerActivity.CPU])
            self.found.__enter__()

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.found.__exit__(None, None, None)

    cfg, profiled = configured(experiment, overrides), Profiled()
    finetuner, _ = build_finetuner(cfg)
    trainer = build(cfg["trainer"], limit_train_batches=2, logger=False, callbacks=[profiled])
    prompts = build(cfg["prompts"]).train
    trainer.fit(finetuner, PromptData(prompts, cfg["samples_per_iteration"], cfg["samples_per_prompt"], cfg["seed"]))
    return profiled.found.key_averages().table(sort_by="self_cpu_time_total", row_limit=rows)


def in_turns(arms: dict[str, tuple[Path, list[str]]], rounds: int, asked: list[str]) -> dict[str, Any]:
    """Medians of each arm, and the ratio of the second's steps a second to the first's in each round."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in arms}
    for turn in range(rounds):
        # in exchanged order, for a machine that gets warm is slower for whoever comes second
        for name, (tree, overrides) in list(arms.items())[:: -1 if turn % 2 else 1]:
            # this file, on the code of that tree
            command = [sys.executable, str(Path(__file__).resolve()), "--worker", *asked, *overrides]
            paths = os.pathsep.join([str(tree), *filter(None, [os.environ.get("PYTHONPATH")])])
            done = subprocess.run(
                command, cwd=tree, env=os.environ | {"PYTHONPATH": paths}, stdout=subprocess.PIPE, encoding="utf-8"
            )
            if done.returncode:
                sys.exit(done.returncode)  # it has said why
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    medians = {
        name: {key: statistics.median(one[key] for one in each) for key in KEPT}
        | {"phases": {key: statistics.median(one["phases"][key] for one in each) for key in each[0]["phases"]}}
        for name, each in found.items()
    }
    result = {"processor": processor(), "medians": medians}
    if len(arms) == 2:
        before, after = ([one["trained_steps_per_second"] for one in each] for each in found.values())
        result["ratio_by_round"] = [b / a for a, b in zip(before, after, strict=True)]
    return result


def processor() -> str:
    """Its name, where Linux tells it."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text(encoding="utf-8").splitlines() if told.exists() else []
    return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--experiment", default="tdpo_r_hps", help="of conf/experiment/")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each")
    parser.add_argument("--iterations", type=int, default=4, help="counted in a turn")
    parser.add_argument("--operators", type=int, metavar="ROWS", help="profile one iteration instead")
    parser.add_argument(
        "--tree", type=Path, help="another checkout to compare with, which comes first in every other turn"
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if min(asked.rounds, asked.iterations, 1 if asked.operators is None else asked.operators) < 1:
        parser.error("--rounds, --iterations and --operators must be at least 1.")
    if asked.operators or asked.worker:
        from src.errors import told_in_one_sentence

        with told_in_one_sentence():
            if asked.operators:
                print(operators(asked.experiment, asked.operators, asked.overrides))
            else:
                print(json.dumps(timed(asked.experiment, asked.iterations, asked.overrides)))
        return
    arms = {"default": (ROOT, [])} if asked.tree is None else {str(asked.tree): (asked.tree.resolve(), asked.overrides)}
    if asked.overrides or asked.tree:
        arms[" ".join(asked.overrides) or "here"] = (ROOT, asked.overrides)
    options = ["--experiment", asked.experiment, "--iterations", str(asked.iterations)]
    print(json.dumps(in_turns(arms, asked.rounds, options), indent=2))


if __name__ == "__main__":
    main()
