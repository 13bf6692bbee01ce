"""An evaluation of weights: the figures of training, of a series, by degrees, and under other conditions."""

import json
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from src.config import check
from src.errors import TrainingError, UserError
from src.overrides import understood
from src.policy.adoption import adopt
from src.policy.weights import recognise
from src.report import compare
from src.report.headline import headline
from src.report.page import write_report
from src.report.runs import find_runs
from src.tasks.evaluate import WeightSeries, _named, as_in_run, evaluate, source_run
from src.tasks.members import Point
from tests import foreign
from tests.conftest import BASE, composed, rows_of
from tests.forked import run_forked
from tests.test_policy import PROMPTS, SEEDS, make_policy, perturb
from tests.test_report import make_run

SMALL = ["+debug=tiny", "logger.mode=disabled", "threads=1", "evaluation.max_prompts=2", "evaluation.grid_pictures=2"]
BY_HISTORY = ("below_peak", "kl_area")  # what depends on the evaluations before


@pytest.fixture(scope="module", params=[pytest.param("full", marks=pytest.mark.slow), "lora"])
def ours(request, tmp_path_factory) -> Path:
    """A run that is pressed so hard that its watch speaks, with the weights of every evaluation."""
    folder = tmp_path_factory.mktemp("ours") / request.param
    rate = "optimizer.lr=3e-4" if request.param == "full" else "optimizer.lr=3e-2"
    done = run_forked(
        *(
            "+experiment=ddpo_hps",
            *SMALL,
            f"policy={request.param}",
            rate,
            "evaluation.keep_weights=true",
            f"run_dir={folder}",
        ),
        *("iterations=4", "evaluation.every=1", "callbacks.watch.margin=0.2"),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def figures(row: dict) -> dict:
    """Of an evaluation, whatever was evaluated before and however it was trained."""
    parts = ("eval/", "held_out/", "pictures/", "kl/")
    return {k: v for k, v in row.items() if k.startswith(parts) and not k.endswith(BY_HISTORY)}


def evaluated(folder: Path, *overrides: str) -> list[dict]:
    """The rows of an evaluation of weights of others, taken for trained on hps, in this process."""
    cfg = check(composed("+experiment=evaluate", *SMALL, "train_reward=hps", *overrides)) | {
        "name": "evaluate",
        "run_dir": str(folder),
    }
    folder.mkdir(parents=True)
    evaluate(cfg, folder)
    return rows_of(folder, "evaluation")


def test_a_run_of_ours_has_its_own_figures_to_the_bit(ours, tmp_path):
    """At scale 1 those of its last evaluation, at scale 0 the base's; its configuration is its own."""
    folder = tmp_path / "again"
    options = ("scale=0,1", "logger.mode=disabled", f"run_dir={folder}")
    done = run_forked("+experiment=evaluate", f"weights={ours}", *options)
    assert done.returncode == 0, done.stderr[-3000:]
    base, zero, one = rows_of(folder, "evaluation")
    before, *_, last = rows_of(ours, "evaluation")
    assert figures(one) == figures(last) and figures(zero) == figures(base) == figures(before)
    assert figures(one) != figures(base) and (zero["policy/scale"], one["policy/scale"]) == (0, 1)
    assert [row["reward_queries"] for row in (zero, one)] == [last["reward_queries"]] * 2
    page = (folder / "report.html").read_text()
    assert "the trained reward (hps) is highest at scale" in page and "In 16 reward queries" in page  # beside the run


def test_an_average_of_weights_has_its_own_figures_to_the_bit(tmp_path):
    """From ema/ of the run folder; the watch has kept the same in best/."""
    folder, again = tmp_path / "run", tmp_path / "again"
    options = ("regulariser=ema", "optimizer.lr=1e-4", "callbacks.watch.margin=9")
    done = run_forked("+experiment=ddpo_hps", *SMALL, *options, f"run_dir={folder}")
    assert done.returncode == 0 and "of averaged weights (ema/)" in done.stdout, done.stderr[-3000:]
    last = rows_of(folder, "evaluation")[-1]
    wanted = {f"{k.replace('_ema/', '/')}": v for k, v in last.items() if "_ema/" in k and not k.endswith(BY_HISTORY)}
    options = ("logger.mode=disabled", f"run_dir={again}")
    done = run_forked("+experiment=evaluate", f"weights={folder / 'ema'}", *options)
    assert done.returncode == 0, done.stderr[-3000:]
    row = rows_of(again, "evaluation")[-1]
    assert {key: row[key] for key in wanted} == wanted and row["reward_queries"] == last["reward_queries"]
    assert row["eval/hps/mean"] != last["eval/hps/mean"]
    own, kept = (folder / place / "unet/diffusion_pytorch_model.safetensors" for place in ("ema", "best/ema"))
    assert own.read_bytes() == kept.read_bytes() and source_run(str(folder / "best/ema")) == folder
    assert "hps, average" in (folder / "report.html").read_text()


def test_the_watch_says_of_a_series_what_it_said_in_training(ours, tmp_path):
    """And all figures are those of training, those that look back included."""
    kind = ours.name
    rows = evaluated(
        *(tmp_path / "series", f"weights={ours}/weights", "callbacks.watch.margin=0.2", f"policy={kind}"),
    )
    assert source_run(f"{ours}/weights") == ours
    trained = rows_of(ours, "evaluation")
    shared = [
        key for key in trained[-1] if key.startswith(("eval/", "held_out/", "pictures/", "kl/", "reward_queries"))
    ]
    assert [[row[key] for key in shared] for row in rows] == [[row[key] for key in shared] for row in trained]
    said, then = (
        [(r["reward_queries"], *(v for k, v in r.items() if k.startswith("watch/"))) for r in rows_of(folder, "watch")]
        for folder in (tmp_path / "series", ours)
    )
    assert said == then and any(row[-1] for row in then)  # it did speak
    assert (
        json.loads((tmp_path / "series/best/at.json").read_text())["reward_queries"]
        == json.loads((ours / "best/at.json").read_text())["reward_queries"]
    )


@pytest.mark.slow
def test_formats_of_the_same_weights_have_the_same_figures(tmp_path):
    """A LoRA that diffusers and peft have trained, in their format, in kohya's, and merged into a full UNet."""
    unet = foreign.trained_lora()
    foreign.merged(unet).save_pretrained(tmp_path / "unet")
    rows = {
        "full": evaluated(tmp_path / "full", f"weights={tmp_path}/unet")[-1],
        "lora": evaluated(tmp_path / "a", f"weights={foreign.save_diffusers(unet, tmp_path / 'lora')}")[-1],
        "kohya": evaluated(tmp_path / "b", f"weights={foreign.save_kohya(unet, tmp_path / 'k.safetensors')}")[-1],
    }
    assert figures(rows["lora"]) == figures(rows["kohya"])
    ours, theirs = figures(rows["lora"]), figures(rows["full"])
    off = {key: abs(ours[key] - theirs[key]) / max(1, abs(ours[key])) for key in ours}
    for key in off:  # two prompts: a base sd of a fifth, in which rounding counts five times as much
        if "/gain" in key or key.endswith("/gap"):
            off[key] *= min(1, ours[key.rsplit("/", 1)[0] + "/base_sd"])
    assert max(off.values()) < 1e-5, max(off.items(), key=lambda item: item[1])
    assert abs(ours["eval/hps/gain"]) > 0.1 and ours["kl/trajectory"] > 1


def test_a_series_of_trls_trainer(tmp_path, capsys):
    """The report's headline names the peak and the loss since; the axis is the number of a checkpoint."""
    for number, steps in ((0, 1), (2, 3), (10, 6)):
        at = tmp_path / f"save/checkpoints/checkpoint_{number}"
        foreign.save_diffusers(foreign.trained_lora(alpha=4, steps=steps), at, metadata=False)
        foreign.accelerate_state(at)
    rows = evaluated(tmp_path / "run", f"weights={tmp_path}/save/checkpoints")
    assert [row["reward_queries"] for row in rows] == [0, 0, 2, 10]
    said = capsys.readouterr().out
    shipped = json.loads((tmp_path / "run/summary.json").read_text())["ship"]
    assert f"to ship, by the watch: {shipped}\n" in said and "hps (trained)" in said
    assert all(name in said for name in ("the base", "checkpoint 0 ", "checkpoint 2 ", "checkpoint 10 ", "<- kept"))
    assert (tmp_path / "run/report_series.csv").read_text().count("\n") == 5
    (run,) = find_runs([str(tmp_path / "run")])
    told = headline(run)
    assert told.startswith("By checkpoint 10 the trained reward (hps) ") and "; gold peaked at checkpoint 0 (" in told
    page = (tmp_path / "run/report.html").read_text()
    assert "number of the checkpoint" in page and told in page and "reward queries [images]" not in page


def test_other_conditions_than_in_training(tmp_path, capsys):
    """Without noise there is no density and no KL, and the rest stands; more steps have a KL each.

    And where nobody knows what was trained on, nothing is said of it.
    """
    lora = foreign.save_diffusers(foreign.trained_lora(), tmp_path / "lora")
    rows = evaluated(tmp_path / "still", f"weights={lora}", "evaluation.eta=0.0", "evaluation.num_steps=4")
    assert all(not any(key.startswith("kl/") or key.endswith("kl_area") for key in row) for row in rows)
    assert rows[-1]["eval/hps/gain"] != 0 and rows[-1]["pictures/drift"] > 0
    assert "No KL: at eta 0" in (tmp_path / "still/report.html").read_text()
    assert capsys.readouterr().out.count("(trained)") == 1
    options = ("evaluation.num_steps=5", "evaluation.guidance=2.0", "train_reward=null")
    more = evaluated(tmp_path / "more", f"weights={lora}", *options)[-1]
    said = capsys.readouterr().out
    assert "(trained)" not in said and "to ship" not in said and not any(key.endswith("/gap") for key in more)
    assert "watch: " in said and not (tmp_path / "more/best").exists()
    assert "kl/step_4" in more and more["eval/hps/gain"] != rows[-1]["eval/hps/gain"]


@pytest.mark.slow
def test_annealed_guidance_goes_from_the_tuned_model_to_the_base(tmp_path):
    lora = foreign.save_diffusers(foreign.trained_lora(), tmp_path / "lora")
    base, tuned, half, none = evaluated(tmp_path / "aig", f"weights={lora}", "aig=[0,1,inf]")
    (_, plain) = evaluated(tmp_path / "plain", f"weights={lora}")
    assert figures(tuned) == figures(plain) and figures(none) == figures(base)
    assert 0 < half["kl/trajectory"] < tuned["kl/trajectory"]
    assert [row.get("policy/aig") for row in (base, tuned, half, none)] == [None, 0, 1, float("inf")]


@torch.no_grad()
def test_kl_at_a_scale_equals_the_closed_form(tmp_path):
    """Of full weights moved by a constant, and of a LoRA of the last convolution: s^2 times that of all of it."""
    policy, shift = make_policy(finetune="full"), 0.01
    policy.unet.conv_out.bias += shift
    policy.save(tmp_path)
    weights = recognise(str(tmp_path))
    rollout = policy.sample(PROMPTS, SEEDS)
    a, a_prev = (bars.double() for bars in policy.sampler.schedule.alpha_bars(policy.timesteps))
    std = ((1 - a_prev) / (1 - a) * (1 - a / a_prev)).sqrt()  # eta 1
    per_unit = -(a_prev.sqrt()) * (1 - a).sqrt() + (1 - a_prev - std**2).clamp(min=0).sqrt() * a.sqrt()
    for scale in (0.25, 0.5, 1.0):
        adopt(policy, weights, BASE, scale)
        moved = torch.tensor(policy.latent_shape).prod() * (scale * shift * per_unit / std) ** 2 / 2
        torch.testing.assert_close(policy.kl_to_base(rollout).double(), moved.expand(3, 4), rtol=1e-4, atol=0)

    lora = make_policy(lora_targets=["conv_out"])
    perturb(lora, 0.1)
    layer, seen = lora.unet.conv_out, []
    up_and_down = lambda h: layer.lora_B["default"](layer.lora_A["default"](h)) * layer.scaling["default"]  # noqa: E731
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    text = lora.encode_prompts(PROMPTS)
    for j, t in enumerate(lora.timesteps):
        lora.predict(rollout.latents[:, j], t.expand(3), text)
    hook.remove()
    squares = torch.stack([up_and_down(h).double().pow(2).sum((1, 2, 3)) for h in seen], 1)  # of what v moves by
    lora.save(tmp_path)
    for scale in (0.5, 1.0):
        adopt(lora, recognise(str(tmp_path / "lora")), BASE, scale)
        expected = squares * (scale * per_unit / std) ** 2 / 2
        torch.testing.assert_close(lora.kl_to_base(rollout).double(), expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("finetune", ["lora", "full"])
def test_annealing_leaves_the_base_and_the_tuned_model_as_they_are(finetune):
    policy = make_policy(finetune=finetune)
    perturb(policy)
    tuned = policy.sample(PROMPTS, SEEDS).images
    with policy.as_base():
        base = policy.sample(PROMPTS, SEEDS).images
    for power, expected in ((0.0, tuned), (float("inf"), base)):
        policy.annealing = power
        assert torch.equal(policy.sample(PROMPTS, SEEDS).images, expected)
        with policy.as_base():
            assert torch.equal(policy.sample(PROMPTS, SEEDS).images, base)
    policy.annealing = 2.0
    x, t, text = torch.randn(3, 4, 16, 16), policy.timesteps[:3], policy.encode_prompts(PROMPTS)
    mixed = policy.predict(x, t, text)
    policy.annealing = None
    now = policy.predict(x, t, text)
    with policy.as_base():
        before = policy.predict(x, t, text)
    g = ((1 - t / 1000) ** 2).view(-1, 1, 1, 1)
    torch.testing.assert_close(mixed, g * now + (1 - g) * before, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_a_killed_series_goes_on(tmp_path):
    """As resume= does: what has been evaluated is not evaluated again, and the rest looks back on it."""
    for number in range(1, 5):
        foreign.save_diffusers(foreign.trained_lora(steps=number), tmp_path / f"c/checkpoint-{number}")
    whole = evaluated(tmp_path / "whole", f"weights={tmp_path}/c")
    hidden = tmp_path / "c/checkpoint-3/pytorch_lora_weights.safetensors"
    content = hidden.read_bytes()
    hidden.write_bytes(content[:-64])
    with pytest.raises(UserError, match="checkpoint-3: pytorch_lora_weights"):
        evaluated(tmp_path / "not_begun", f"weights={tmp_path}/c")
    assert not (tmp_path / "not_begun/metrics.jsonl").exists()  # all are looked at before anything is sampled
    hidden.write_bytes(content)
    save_file({key: value * torch.nan for key, value in load_file(hidden).items()}, hidden)
    with pytest.raises(UserError, match=r"checkpoint-3: .*NaN.* kept: python -m src\.run resume=\S*cut goes on\.$"):
        evaluated(tmp_path / "cut", f"weights={tmp_path}/c")
    assert len(rows_of(tmp_path / "cut", "evaluation")) == 3
    hidden.write_bytes(content)
    done = run_forked(f"resume={tmp_path / 'cut'}")
    assert done.returncode == 0, done.stderr[-2000:]
    assert rows_of(tmp_path / "cut", "evaluation") == whole
    assert rows_of(tmp_path / "cut", "watch") == rows_of(tmp_path / "whole", "watch")


def test_weights_that_are_no_numbers_stop_with_their_name(tmp_path):
    unet = foreign.base_unet()
    with torch.no_grad():
        unet.conv_out.bias += torch.nan
    unet.save_pretrained(tmp_path / "broken")
    with pytest.raises(UserError, match=r"weights=.*broken: 1 of its \d+ tensors hold NaN or infinity"):
        evaluated(tmp_path / "run", f"weights={tmp_path}/broken")
    with torch.no_grad():
        unet.conv_out.bias.fill_(1e38)  # numbers, and no pictures
    unet.save_pretrained(tmp_path / "large")
    said = (
        r"a sampled picture is not finite at .*large; stopped\. The base is in order: leave these weights out, or give"
    )
    with pytest.raises(TrainingError, match=said):
        evaluated(tmp_path / "large_run", f"weights={tmp_path}/large")


def test_a_series_that_has_to_stop_says_how_to_mend_it():
    """Of the base it is not the weights' fault, and of a reward nobody's but the reward's."""
    series = WeightSeries(make_policy(num_steps=2), "hps", [], [], "sd")
    with pytest.raises(
        TrainingError, match=r"picture is not finite at the base sd; .* look at the base model's weights"
    ):
        series.check_pictures(torch.tensor(torch.nan))
    with pytest.raises(
        TrainingError, match=r"the reward hps is not finite at the base sd; .* mend the reward, or leave"
    ):
        series.check_scores("hps", torch.tensor([torch.inf]))


def test_series_of_others_are_compared_like_runs(tmp_path, monkeypatch, capsys):
    """Two series and a run of ours, of which only the last knows its reward queries."""
    for name, trained in (("a", 5e-3), ("b", 2e-2)):
        for number in (1, 2):
            at = tmp_path / f"{name}/checkpoint-{number}"
            foreign.save_diffusers(foreign.trained_lora(steps=2 * number, lr=trained), at)
        evaluated(tmp_path / f"runs/{name}", f"weights={tmp_path}/{name}/checkpoint-*")
    make_run(tmp_path / "runs/ours", [0, 0.4, 0.2], [0, 1, 2])
    config = tmp_path / "runs/ours/config.yaml"
    config.write_text(config.read_text() + "reset: {_target_: x.NoReset}\npolicy: {path: base}\nprompts: {}\n")
    rows = (
        (tmp_path / "runs/ours/metrics.jsonl")
        .read_text()
        .replace('"kind": "iteration"', '"optimizer_steps": 1, "kind": "iteration"')
    )
    (tmp_path / "runs/ours/metrics.jsonl").write_text(rows)
    monkeypatch.setattr(sys, "argv", ["compare", str(tmp_path / "runs"), "--at", "0.1"])
    compare.main()
    told, found = capsys.readouterr().out, pd.read_csv(tmp_path / "runs/results.csv")
    assert len(found) == 3 and found.gold_end.notna().all() and found.optimizer_steps.notna().sum() == 1
    assert f"weights={tmp_path}/a/checkpoint-*" in told and (tmp_path / "runs/curves.png").stat().st_size > 10_000
    page = write_report(find_runs([str(tmp_path / "runs")]), tmp_path / "report.html").read_text()
    assert "reward queries [images]" in page and "number of the checkpoint" in page


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["scale=0,0.5,1"], ["scale=[0,0.5,1]"]),
        (["scale=[0,1]", "aig=inf", "seed=1"], ["scale=[0,1]", "aig=inf", "seed=1"]),
        (["weights=multirun/x/reset=full,seed=0"], ["weights='multirun/x/reset=full,seed=0'"]),
        (["weights=it's/c-*"], [r"weights='it\'s/c-*'"]),
        (["weights=[a,b]", "weights='a'"], ["weights=[a,b]", "weights='a'"]),
        (["-m", "scale=0,1"], ["-m", "scale=0,1"]),
    ],
)
def test_what_is_typed_is_what_is_meant(typed, meant):
    assert understood(typed) == meant
    if typed[0].startswith("weights=") and len(typed) == 1:
        assert composed(*meant).weights == typed[0].removeprefix("weights=")


def test_what_a_run_was_trained_as_is_not_for_the_command_line(finished):
    wanted = composed("+experiment=evaluate", f"weights={finished}", "evaluation.samples_per_prompt=3", "guidance=2")
    options = ["+experiment=evaluate", f"weights={finished}", "evaluation.samples_per_prompt=3"]
    cfg = as_in_run(finished, wanted, options)
    assert (cfg.evaluation.samples_per_prompt, cfg.task) == (3, "evaluate")
    assert cfg.num_steps == 3 and cfg.evaluation.max_prompts == 4  # the run's, and not the defaults
    with pytest.raises(UserError, match=r"guidance=2 is not for an evaluation of .*finished, which keeps"):
        as_in_run(finished, wanted, [*options, "guidance=2"])


def test_of_several_scales_the_whole_is_named_too(tmp_path):
    foreign.base_unet().save_pretrained(tmp_path)
    weights = recognise(str(tmp_path))
    half, whole = Point(weights, 1, 0.5), Point(weights, 1)
    assert [_named([half, whole], number) for number in (1, 2)] == [f"{tmp_path} at scale {s}" for s in (0.5, 1)]
    assert _named([whole, Point(weights, 2)], 1) == str(tmp_path)
