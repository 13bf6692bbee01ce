"""Whole runs through the entry point: what they leave behind, and what bad input is told."""

import functools
import json
import resource
import shutil
import sys

import pytest

from src.metrics.glossary import lookup
from src.rewards.base import RewardModel
from tests.conftest import TINY, rows_of, run_command
from tests.forked import run_forked


def test_the_run_folder_is_complete(finished):
    names = {str(p.relative_to(finished)) for p in finished.rglob("*") if p.is_file()}
    expected = {"config.yaml", "versions.json", "metrics.jsonl", "summary.json", "report.html", "checkpoints/last.ckpt"}
    assert expected | {"samples/00000.png", "samples/00006.png", "samples/hacks.png"} <= names
    assert {"unet/diffusion_pytorch_model.safetensors"} <= names
    assert {"best/at.json", "best/unet/diffusion_pytorch_model.safetensors"} <= names
    assert not [name for name in names if ".partial" in name or name.endswith(".tmp")]
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["iterations"] == 6 and summary["reward_queries"] == 24
    assert summary["trajectory_steps_per_second"] == pytest.approx(24 * 3 / summary["training_seconds"])
    assert sum(summary["share_of_training_time"].values()) == pytest.approx(1)
    assert len(summary["versions"]["commit"]) >= 7


def test_rows_and_columns(finished):
    iterations, evaluations = rows_of(finished, "iteration"), rows_of(finished, "evaluation")
    assert [row["iteration"] for row in iterations] == [1, 2, 3, 4, 5, 6]
    assert [row["iteration"] for row in evaluations] == [0, 3, 6]
    assert [row["reward_queries"] for row in iterations] == [4, 8, 12, 16, 20, 24]
    assert [row["reward_queries"] for row in rows_of(finished, "watch")] == [0, 12, 24]
    assert [row["optimizer_steps"] for row in iterations] == [3, 6, 9, 12, 15, 18]  # one a timestep
    for rows in (
        iterations[0::2],
        iterations[3::2],
        evaluations,
    ):  # without a reset, with one after another, evaluations
        named = {tuple(key for key in row if key != "reset/recovery") for row in rows}  # logged when it happens
        assert len(named) == 1  # the columns are fixed
    assert evaluations[0]["eval/hps/gain"] == 0
    assert [row["reset/share"] > 0 for row in iterations] == [False, True] * 3


def test_every_logged_key_is_explained(finished):
    """tests/test_docs.py holds docs/metrics.md to the glossary."""
    used = {key for row in rows_of(finished) for key in row}
    assert all(lookup(key).meaning for key in used)


OTHERS = ["ddpo_hps", "grpo", "dpok", "draft", "alignprop", "refl", "nft", "dpo_online", "d3po"]


@pytest.mark.parametrize("experiment", ["tdpo_hps", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_the_other_experiments_run(experiment, tmp_path):
    pictures = 0 if experiment == "ddpo_hps" else 2
    chosen = (f"evaluation.grid_pictures={pictures}", f"run_dir={tmp_path / 'run'}")
    done = run_forked(f"+experiment={experiment}", *TINY[1:], *chosen)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(rows_of(tmp_path / "run", "iteration")) == 2
    assert (tmp_path / "run/samples").exists() == (pictures > 0)


class Flat(RewardModel):
    """Counts pixels, so that its score has no gradient."""

    embed_dim = 1

    def forward(self, images, prompts):
        return (images > 0.5).float().mean((1, 2, 3))


BAD = {
    "unknown option": (["iteratoins=3"], "iteratoins"),
    "unknown option in a group": (["+reset.ration=0.1"], "did you mean ratio"),
    "wrong type": (["iterations=many"], "many"),
    "ratio outside [0, 1]": (["reset.ratio=1.5"], "outside [0, 1]"),
    "unknown experiment": (["+experiment=nothing"], "nothing"),
    "reset without critic": (["+experiment=ddpo_hps", "reset=active"], "reset=active needs a critic"),
    "missing weights": (["suite.base=/nowhere"], "/nowhere"),
    "batches do not divide": (["samples_per_prompt=5"], "not a multiple"),
    "nothing to resume": (["resume=/nowhere"], "/nowhere"),
    "no prompts": (["prompts=file", "prompts.path={empty}"], "holds no prompt"),
    "existing run folder": (["run_dir={taken}"], "exists"),
    "unreadable checkpoint": (["resume={broken}"], "not a readable checkpoint"),
    "another run on resume": (["resume={whole}", "reset=none"], "reset=none cannot be changed on resume"),
    "impossible watch": (["callbacks.watch.margin=-0.1"], "margin=-0.1"),
    "unknown way of fine-tuning": (["policy.finetune=ful"], "policy.finetune='ful'"),
    "no evaluation period": (["evaluation.every=0"], "must be at least 1"),
    "layers that do not exist": (["policy=lora", "policy.lora_targets=[nothing]"], "nothing"),
    "rewards on several devices": (["+experiment=train_reward_hps", "trainer.devices=2"], "trainer.devices=2"),
    "more processes than samples": (["trainer.devices=80", "trainer.accelerator=cpu"], "80 processes"),
    "more steps than there are": (["num_steps=2000"], "num_steps=2000"),
    "online without a key": (["logger.mode=online"], "needs a key"),
    "devices that are not there": (["trainer.accelerator=tpu"], "error: trainer: "),
    "groups of one": (["+experiment=grpo", "samples_per_prompt=1"], "samples_per_prompt=1: GRPO compares samples"),
    "nothing to disagree with": (
        ["regulariser=gardo", *(f"~suite.rewards.{name}" for name in ("pickscore", "imagereward", "aesthetic"))],
        "regulariser=gardo compares the trained reward with others, and this suite has no other one",
    ),
    "a reward without a gradient": (
        ["+experiment=draft", "+suite.rewards.flat._target_=tests.test_run.Flat", "train_reward=flat"],
        "train_reward=flat: Flat has no gradient",
    ),
    "two KLs": (["+experiment=dpok", "regulariser=kl_loss"], "DPOK has a KL of its own, algorithm.kl_weight"),
    "returns that nobody looks at": (["+experiment=draft", "regulariser=kl_reward"], "choose regulariser=kl_loss"),
    "credit that nobody looks at": (["+experiment=d3po", "regulariser=gardo"], "D3PO does not go by that"),
    "a trust region of one step": (
        ["+experiment=grpo", "algorithm.trust=divergence"],
        "algorithm.trust=divergence does nothing in the first optimizer step on a rollout",
    ),
    "pairs on different ranks": (
        ["+experiment=d3po", "trainer.devices=3", "trainer.accelerator=cpu"],
        "3 processes would hold samples of one prompt apart, and D3PO pairs them",
    ),
    "no threads": (["threads=0"], "threads=0 must be at least 1"),
    "no batch": (["policy.sampling_batch=0"], "policy.sampling_batch=0 must be at least 1"),
    "a buffer that is never full enough": (["normaliser.buffer=4"], "normaliser.min_count=8 must lie in 1..4"),
    "a reward's name": (["+suite.rewards.HPS=${{suite.rewards.hps}}"], "suite.rewards.HPS: a reward"),
    "a figure that there is not": (["objective=eval/gold/gian"], "objective=eval/gold/gian is no figure"),
    "a figure of held-out prompts": (
        ["objective=held_out/gold/gain", "prompts=file", "prompts.path={four}"],
        "these prompts hold none out",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_sentence_and_exit_code_2(case, tmp_path, finished, capfd, monkeypatch):
    places = {name: tmp_path / name for name in ("empty", "four", "taken", "broken")}
    places["empty"].write_text("\n\n")
    places["four"].write_text("cat\ndog\nhorse\nmonkey\n")
    places["taken"].mkdir()
    (places["taken"] / "results").write_text("precious")
    monkeypatch.setenv("HOME", str(tmp_path))  # no key in netrc
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    overrides, message = BAD[case]
    if "resume={broken}" in overrides:
        shutil.copytree(finished, places["broken"])
        (places["broken"] / "checkpoints/last.ckpt").write_bytes(b"half a file")
    overrides = [o.format(**places, whole=finished) for o in overrides]
    if not any(o.startswith(("resume", "run_dir")) for o in overrides):
        overrides.append(f"run_dir={tmp_path / 'new'}")
    code, err = run_in_process(overrides, capfd, monkeypatch)
    assert code == 2
    assert message in err and err.startswith("error: ") and len(err.splitlines()) == 1, err
    assert (places["taken"] / "results").read_text() == "precious"
    assert not (tmp_path / "new").exists()  # the mended command can use the same folder


def run_in_process(overrides: list[str], capfd, monkeypatch) -> tuple[int, str]:
    """The entry point without the seconds that importing torch takes; returns (exit code, stderr)."""
    from hydra.core.global_hydra import GlobalHydra

    from src.run import cli

    monkeypatch.setattr(sys, "argv", ["src.run", *overrides])
    GlobalHydra.instance().clear()
    capfd.readouterr()
    with pytest.raises(SystemExit) as exit_:
        cli()
    return int(exit_.value.code), capfd.readouterr().err.strip()


def test_a_full_disk_stops_the_run_and_keeps_the_last_checkpoint(tmp_path, finished):
    """The checkpoint is written whole beside the old one before it replaces it; here no file may grow past 2 MB."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    before = (folder / "checkpoints/last.ckpt").read_bytes()
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
    done = run_forked(f"resume={folder}", "iterations=8", before=limit)
    assert done.returncode == 2
    assert "could not be written" in done.stderr and "Traceback" not in done.stderr
    assert f"make room, then python -m src.run resume={folder} goes on from the last checkpoint." in done.stderr
    assert (folder / "checkpoints/last.ckpt").read_bytes() == before


def test_nothing_is_left_where_it_was_called_from(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, err = run_in_process(["+experiment=tdpo_r_hps", "train_reward=gold"], capfd, monkeypatch)
    assert code == 2 and "run it from the project's root" in err
    assert not list(tmp_path.iterdir())


def test_help_names_the_experiments():
    done = run_command("--help")
    assert done.returncode == 0
    assert "tdpo_r_hps" in done.stdout and "resume" in done.stdout
