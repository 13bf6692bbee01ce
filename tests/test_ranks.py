"""Two processes give the run that one gives, and speak to each other as little as they can."""

import functools
import json
import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from lightning import Callback
from lightning.pytorch.utilities import rank_zero_only
from torch.profiler import ProfilerActivity, profile

from src.ranks import Ranks
from tests.conftest import TINY, rows_of, run_command
from tests.forked import places, run_forked, started
from tests.test_resume import timeless

# features in bfloat16 depend on the batch they are computed in; Adam makes whole steps of gradients that are but
# rounding errors, unless they are small beside its epsilon (half of the policy's gradients are above 1e-5)
RUN = [
    *TINY,
    "samples_per_iteration=6",
    "samples_per_prompt=2",
    "microbatch=3",
    "critic.precision=fp32",
    "optimizer.eps=1e-6",
    "critic_optimizer.eps=1e-6",
    "evaluation.every=2",
    "evaluation.max_prompts=4",
    "checkpoint_every=2",
    "reset.every=2",
    "reset.ratio=0.5",
    "trainer.accelerator=cpu",
]


class AllReduces(Callback):
    """Writes how often which number of values was all-reduced, by whomever, in the first training step."""

    def __init__(self, run_dir: str):
        self.path, self.profile = Path(run_dir) / "all_reduces.json", None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if pl_module.iteration == 0:
            self.profile = profile(activities=[ProfilerActivity.CPU], record_shapes=True)
            self.profile.__enter__()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if self.profile is None:
            return
        self.profile.__exit__(None, None, None)
        shapes = [event.input_shapes for event in self.profile.events() if event.name == "gloo:all_reduce"]
        if trainer.is_global_zero:
            self.path.write_text(json.dumps(Counter(torch.Size(shape[0]).numel() for shape in shapes)))
        self.profile = None


def stand(place: dict[str, str]) -> None:
    """What a launcher says to a process, and what Lightning made of it when it was imported."""
    os.environ |= place
    rank_zero_only.rank = int(place["RANK"])


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Path]:
    """Four iterations by one process, and by two."""
    folder = tmp_path_factory.mktemp("ranks")
    one, two = folder / "one", folder / "two"
    counted = "+callbacks.count._target_=tests.test_ranks.AllReduces"
    done = run_forked(*RUN, "iterations=4", f"run_dir={one}")
    assert done.returncode == 0, done.stderr[-2000:]
    command, pair = [*RUN, "iterations=4", f"run_dir={two}", "trainer.devices=2", counted], []
    for place in places(2):
        told = folder / f"rank {place['RANK']}"
        told.mkdir()
        pair.append((started(command, told, functools.partial(stand, place)), told))
    for process, told in pair:
        process.join(300)
        assert process.exitcode == 0, (told / "err").read_text()[-3000:]
    return one, two


def test_two_ranks_log_what_one_logs(runs):
    one, two = (rows_of(run) for run in runs)
    assert [row.keys() for row in one] == [row.keys() for row in two]
    same = ("reward/", "neurons/", "reset/", "critic/loss", "policy/grad_norm")
    same += tuple(f"{measured}/{name}/" for measured in ("eval", "held_out") for name in ("hps", "gold"))
    for a, b in zip(one, two, strict=True):
        for key in (key for key in a if key.startswith(same) or key in ("pictures/drift", "reward_queries")):
            over = max(1.0, a["kl/sqrt"]) if key.endswith("kl_area") else 1.0  # a gain times so much
            assert b[key] == pytest.approx(a[key], rel=1e-5, abs=1e-5 * over), key
    assert [row["reset/share"] > 0 for row in two if row["kind"] == "iteration"] == [False, True, False, True]


def test_two_ranks_learn_what_one_learns(runs):
    states = [torch.load(run / "checkpoints/last.ckpt", weights_only=False) for run in runs]
    one, two = (state["state_dict"] for state in states)
    layers = {}
    for name, values in one.items():
        layers.setdefault(name.rpartition(".")[0], []).append(values.abs().max())
    for name, values in one.items():
        # biases may be rounding errors to begin with, so each is held against the largest parameter of its layer
        assert (two[name] - values).abs().max() <= 1e-5 * max(layers[name.rpartition(".")[0]]), name
    assert states[0]["progress"]["normaliser"].keys() == states[1]["progress"]["normaliser"].keys()


def test_two_ranks_take_the_step_that_one_takes(runs):
    """From Adam's moments: little of a step is left in float32 weights ten thousand times its size."""
    states = [torch.load(run / "checkpoints/last.ckpt", weights_only=False)["optimizer_states"] for run in runs]
    for one, two in zip(*states, strict=True):
        for kind in (gradient_of, step_of):
            expected, found = flat(one, kind), flat(two, kind)
            assert expected.norm() > 0
            assert (found - expected).norm() <= 1e-5 * expected.norm()


def gradient_of(moments, group):
    """The mean gradient, in double precision: Adam's first moment without its bias (Kingma and Ba 2015)."""
    return moments["exp_avg"].double() / (1 - group["betas"][0] ** float(moments["step"]))


def step_of(moments, group):
    second = moments["exp_avg_sq"].double() / (1 - group["betas"][1] ** float(moments["step"]))
    return gradient_of(moments, group) / (second.sqrt() + group["eps"])


def flat(optimizer, kind):
    (group,) = optimizer["param_groups"]
    return torch.cat([kind(moments, group).flatten() for moments in optimizer["state"].values()])


@pytest.mark.slow
def test_two_ranks_go_on_after_a_restart(runs, tmp_path):
    for command in (
        [*RUN, "iterations=2", f"run_dir={tmp_path}", "trainer.devices=2"],
        [f"resume={tmp_path}", "iterations=4"],
    ):
        assert run_command(*command).returncode == 0
    assert timeless(tmp_path) == timeless(runs[1])


def test_gradients_are_all_reduced_once_an_optimizer_step(runs):
    _, two = runs
    sizes = {int(size): count for size, count in json.loads((two / "all_reduces.json").read_text()).items()}
    trained = sum(
        w.numel() for w in torch.load(two / "checkpoints/last.ckpt", weights_only=False)["state_dict"].values()
    )
    assert sizes.pop(trained) == rows_of(two, "iteration")[0]["optimizer_steps"]
    assert max(sizes) == 3 * sum([1024, 128, 64, 16])  # the rest are statistics, of each neuron three at most


@pytest.mark.parametrize(("n", "world"), [(8, 2), (7, 3), (5, 5), (64, 8)])
def test_parts_cover_every_row_once(n, world):
    parts = [Ranks(rank, world).part(n) for rank in range(world)]
    assert [row for part in parts for row in range(n)[part]] == list(range(n))
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) - min(sizes) <= 1
    rows = torch.randperm(n)
    owners = torch.stack([Ranks(rank, world).own(rows, n) for rank in range(world)])
    assert (owners.sum(0) == 1).all()


def test_ranks_started_from_outside_need_a_folder(monkeypatch):
    for key, value in {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "RANK": "0"}.items():
        monkeypatch.setenv(key, value)
    done = run_forked(*RUN, "trainer.devices=2")
    assert done.returncode == 2 and "run_dir= is needed" in done.stderr
