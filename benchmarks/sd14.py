"""Times the project's own iteration at the size of the released models, from random weights: no hub, no network.

python -m benchmarks.sd14                        on a GPU; --samples 32 for a short run
python -m benchmarks.sd14 --suite sd35           Stable Diffusion 3.5 medium, without its T5; or sdxl, *_single_gpu
python -m benchmarks.sd14 --size tiny            anywhere, in seconds: does it run?
python -m benchmarks.sd14 --experiment grpo      another algorithm
python -m benchmarks.sd14 --estimate             anywhere: memory and arithmetic that a GPU has to do, counted, not run
Further arguments are overrides, as of src.run: policy.compile=true microbatch=4. Every iteration ends with a reset.
"""

import argparse
import datetime
import json
import os
import platform
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # its weights are made up: nothing is fetched
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}

import lightning
import torch
from hydra import compose, initialize_config_dir

import src.config  # noqa: F401  (registers the schema)
from benchmarks.counted import GIB, estimated, flops_a_row, rows_of
from benchmarks.weights import write_weights
from src.config import check
from src.errors import UserError, told_in_one_sentence
from src.files import user_path, write_json
from src.finetuner import RewardFinetuner
from src.prompts import PromptData
from src.runs.folder import versions
from src.screen import quieten
from src.tasks.building import build, build_finetuner

ROOT = Path(__file__).parent.parent
TINY = ["num_steps=3", "samples_per_iteration=8", "algorithm.samples_per_update=4", "microbatch=2"]
SUITES = [f"{name}{size}" for name in ("sd14", "sd15", "sdxl", "sd35") for size in ("", "_single_gpu")]
NO_GPU = "no GPU here: tiny size on the CPU, figures say nothing about a GPU"


def main() -> None:
    args = parser().parse_args()
    with told_in_one_sentence():
        result = run(args)
        print(json.dumps(result, indent=2))
        if args.out:
            write_json(user_path(args.out), result)


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--size", choices=("full", "tiny"), default="full", help="of the networks")
    options.add_argument("--suite", choices=SUITES, default="sd14")
    options.add_argument("--iterations", type=int, default=1, help="timed, after one that is not")
    options.add_argument("--samples", type=int, help="images an iteration; the suite's own number is extrapolated to")
    options.add_argument("--experiment", default="tdpo_r_hps", help="of conf/experiment/")
    options.add_argument(
        *("--estimate", "--estimate-memory"), action="store_true", help="count bytes and arithmetic instead of running"
    )
    options.add_argument("--force", action="store_true", help="full size without a GPU: hours")
    options.add_argument("--out", help="JSON file to write")
    options.add_argument("overrides", nargs="*")
    return options


def run(args: argparse.Namespace) -> dict[str, Any]:
    if args.size == "full" and not (torch.cuda.is_available() or args.force or args.estimate):
        raise UserError("--size full needs a GPU and there is none here: choose --size tiny, or insist with --force.")
    if args.iterations < 1:
        raise UserError(f"--iterations {args.iterations} must be at least 1.")
    quieten()
    plain = [f"+experiment={args.experiment}", f"suite={args.suite}", "reset.every=1"]
    plain += TINY if args.size == "tiny" else []
    wanted = check(composed(plain))["samples_per_iteration"]
    with tempfile.TemporaryDirectory() as folder:
        weights = write_weights(Path(folder), args.size, args.suite)
        cfg = check(composed([*plain, *weights, *fewer(args.samples), *args.overrides]))
        if args.samples and args.samples % (2 * cfg["microbatch"]):
            raise UserError(
                f"--samples {args.samples} must be a multiple of {2 * cfg['microbatch']}, two microbatches: "
                "or the networks would see smaller ones than they are meant to."
            )
        result = heading(args, cfg)
        if args.estimate:
            return result | estimated(cfg)
        return result | measured(cfg, args.iterations, wanted)


def composed(overrides: list[str]) -> Any:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", overrides)


def fewer(samples: int | None) -> list[str]:
    """Fewer samples an iteration, in as many optimizer steps (two a timestep)."""
    return [f"samples_per_iteration={samples}", f"algorithm.samples_per_update={samples // 2}"] if samples else []


def heading(args: argparse.Namespace, cfg: dict[str, Any]) -> dict[str, Any]:
    """What was run, where and when; says so plainly where the figures are not a GPU's."""
    cuda = torch.cuda.is_available()
    cpu = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    notes = {} if cuda or args.estimate else {"note": NO_GPU if args.size == "tiny" else "no GPU here"}
    return notes | {
        "size": args.size,
        "suite": args.suite,
        "overrides": args.overrides,
        "precision": cfg["trainer"]["precision"],
        "microbatch": cfg["microbatch"],
        "device": torch.cuda.get_device_name() if cuda else cpu,
        "date": datetime.date.today().isoformat(),
        "versions": versions(),
    }


class Warmed(lightning.Callback):
    """Keeps what the first iteration took, so that it can be left out."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.steps = 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if pl_module.iteration == 1:
            self.seconds, self.steps = dict(pl_module.phase_seconds), pl_module.optimizer_steps


def measured(cfg: dict[str, Any], iterations: int, wanted: int) -> dict[str, Any]:
    """Runs the iterations; `wanted`: images an iteration that the seconds are extrapolated to."""
    finetuner, rewards = build_finetuner(cfg)
    prompts, warmed = build(cfg["prompts"]), Warmed()
    trainer = build(cfg["trainer"], limit_train_batches=1 + iterations, logger=False, callbacks=[warmed])
    device = trainer.strategy.root_device
    for reward in rewards.values():
        reward.to(device)  # as in a run, where all of them evaluate
    data = PromptData(prompts.train, cfg["samples_per_iteration"], cfg["samples_per_prompt"], cfg["seed"])
    trainer.fit(finetuner, data)
    seconds = {k: (v - warmed.seconds[k]) / iterations for k, v in finetuner.phase_seconds.items()}
    peak = peak_gib(device)
    finetuner.to(device)  # Lightning takes it off at the end
    steps = (finetuner.optimizer_steps - warmed.steps) / iterations
    return figures(finetuner, seconds, steps, cfg, wanted) | {"peak_gib": peak} | share(finetuner, seconds, cfg)


def figures(
    finetuner: RewardFinetuner, seconds: dict[str, float], steps: float, cfg: dict[str, Any], wanted: int
) -> dict[str, Any]:
    samples, total = cfg["samples_per_iteration"], sum(seconds.values())
    rows = rows_of(finetuner, cfg)
    return {
        "images_per_iteration": samples,
        "seconds_per_iteration": total,
        "seconds_by_phase": seconds,
        f"seconds_per_iteration_of_{wanted}": total * wanted / samples,
        "extrapolated": samples != wanted,
        "sampled_images_per_second": samples / seconds["sampling"],
        "optimizer_updates_per_second_of_update": steps / seconds["update"],
        "trained_steps_per_second_of_update": rows / seconds["update"],
        "trained_steps_per_second": rows / total,
    }


def share(finetuner: RewardFinetuner, seconds: dict[str, float], cfg: dict[str, Any]) -> dict[str, float]:
    """What the update makes of the machine, by the arithmetic that it cannot do without."""
    kinds = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    rate = matmul_rate(finetuner.device, kinds.get(cfg["trainer"]["precision"], torch.float32))
    flops = flops_a_row(finetuner.policy)
    achieved = flops * rows_of(finetuner, cfg) / seconds["update"]
    return {
        "gflop_a_trained_step": flops / 1e9,
        "matmul_tflop_per_second": rate / 1e12,
        "update_tflop_per_second": achieved / 1e12,
        "update_share_of_matmul_rate": achieved / rate,
    }


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product, median of ten; of fewer where it takes seconds, as emulated bfloat16 does."""
    n = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    times: list[float] = []
    while len(times) < 13 and sum(times) < 1:
        start = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 2 * n**3 / statistics.median(times[3:] or times)


def peak_gib(device: torch.device) -> float:
    """Of the GPU, what tensors took at most; of the CPU, the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


if __name__ == "__main__":
    main()
