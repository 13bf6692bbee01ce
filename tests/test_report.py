"""The report of runs: what it says, and that the page holds all it needs."""

import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from PIL import Image

from src.errors import UserError
from src.report.figures import (
    COLOURS,
    GOLDEN,
    colour_of,
    cross_reward_matrix,
    health_by_step,
    kl_frontier,
    kl_profile,
    matrix_rows,
    places_in_palette,
    proxy_against_judge,
    reward_curves,
    small_multiples,
    treatments,
)
from src.report.headline import headline, setting
from src.report.page import write_report
from src.report.runs import choice_among, differences, find_runs, lay_out
from src.report.watching import detect
from tests.conftest import ROOT


def make_run(folder: Path, gold: list[float], proxy: list[float], seed: int = 0, trained: str = "hps") -> Path:
    """A run folder of the shape that real ones have, with these gains at every 640 queries."""
    (folder / "samples").mkdir(parents=True)
    suite = {"rewards": {"hps": {}, "aesthetic": {}}, "judges": {"gold": {}}}
    config = {"name": "tdpo_r_hps", "train_reward": trained, "suite": suite, "seed": seed, "num_steps": 2}
    config["iterations"] = 10 * (len(gold) - 1)
    config["callbacks"] = {"watch": {"signal": "trained", "margin": 0.1, "patience": 1}}
    OmegaConf.save(OmegaConf.create(config | {"run_dir": str(folder)}), folder / "config.yaml")
    rows = []
    for k, (g, p) in enumerate(zip(gold, proxy, strict=True)):
        row = {"kind": "evaluation", "iteration": 10 * k, "reward_queries": 640 * k, "kl/sqrt": float(k)}
        row |= {"kl/trajectory": float(k * k), "kl/step_0": 0.3 * k, "kl/step_1": 0.7 * k, "pictures/vendi": 3.0}
        for name, gain in (("gold", g), ("hps", p), ("aesthetic", 0.5 * p)):
            row |= {
                f"eval/{name}/gain": gain,
                f"eval/{name}/gain_low": gain - 0.1,
                f"eval/{name}/gain_high": gain + 0.1,
            }
            row |= {f"eval/{name}/below_peak": 0.0, f"eval/{name}/win_rate": 0.5, f"held_out/{name}/gain": gain / 2}
        rows.append(row)
        rows.append(
            {"kind": "iteration", "iteration": 10 * k + 1, "reward_queries": 640 * k + 64, "reset/share": k % 2}
            | {f"policy/ratio_std/step_{j}": 1e-4 * (k + j) for j in range(2)}
        )
        Image.new("RGB", (1200, 300), "white").save(folder / f"samples/{10 * k:05d}.png")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"kind": "iter')
    return folder


@pytest.mark.parametrize(
    ("gold", "ending"),
    [
        (
            [0, 0.4, -0.4],
            "rose by 2.1 base sd; gold peaked at 640 queries (+0.40) and had lost 0.8 base sd at the end. On prompts "
            "that no run trains on gold ends at -0.20, highest at 640 queries (+0.20).",
        ),
        (
            [0, -0.4, -1.4],
            "gold was highest before training and had lost 1.4 base sd at the end. On prompts that no run trains on "
            "gold ends "
            "at -0.70, highest before training (+0.00).",
        ),
        (
            [0, 0.1, 0.2],
            "gold rose with it to +0.2 and has not fallen yet. On prompts that no run trains on gold ends at "
            "+0.10, its highest.",
        ),
    ],
)
def test_the_headline_says_what_happened(tmp_path, gold, ending):
    run = find_runs([str(make_run(tmp_path / "run", gold, [0, 1, 2.1]))])[0]
    assert headline(run).startswith("In 1,280 reward queries the trained reward (hps)")
    assert headline(run).endswith(ending)


def test_the_report_says_what_was_run_and_how_near_the_watch_is(tmp_path):
    folder = make_run(tmp_path / "run", [0, 0.1, 0.2], [0, 1.0, 2.1])
    config = OmegaConf.load(folder / "config.yaml")
    told = {
        "algorithm": {"_target_": "src.algorithms.tdpo.TDPO"},
        "reset": {"_target_": "src.resets.active.ActiveReset", "every": 10},
        "regulariser": {"_target_": "src.regularisers.none.NoRegulariser"},
        "policy": {"finetune": "full"},
        "optimizer": {"lr": 7e-6},
        "evaluation": {"samples_per_prompt": 4, "held_out_samples_per_prompt": 2},
        **{"samples_per_iteration": 64, "samples_per_prompt": 8, "lr_factor": 10, "lr_ramp": 20, "pairs": 24000},
        "suite": {"name": "mini"},
    }
    OmegaConf.save(OmegaConf.merge(config, told), folder / "config.yaml")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(
            "\n" + json.dumps({"kind": "watch", "iteration": 20, "watch/alarm": 0.0, "watch/below_peak": 0.04}) + "\n"
        )
    (run,) = find_runs([str(folder)])
    assert setting(run) == (
        "algorithm=tdpo; reset=active every 10 iterations; suite=mini, full fine-tuning; 20 iterations of 64 "
        "pictures, 8 a prompt; learning rate 7e-06, rising 10 times in 20 iterations; seed 0. Each "
        "evaluation: 4 pictures a training prompt and 2 a held-out one."
    )
    page = write_report([run], tmp_path / "report.html").read_text()
    assert setting(run) in page and "none; at 0.04 of 0.10" in page and "70% of it in the last" in page
    assert "<code>pairs</code>" not in page  # of training a reward


def test_the_headline_of_a_run_that_went_nowhere_or_down(tmp_path):
    begun, worse = (
        find_runs([str(make_run(tmp_path / name, gold, proxy))])[0]
        for name, gold, proxy in (("begun", [0], [0]), ("worse", [0, 0.2], [0, -0.4]))
    )
    still = find_runs([str(make_run(tmp_path / "still", [0, 0.03], [0, -0.04]))])[0]
    assert headline(begun).startswith("Only the base model has been evaluated so far")
    assert "fell by 0.4 base sd; gold rose nevertheless to +0.2" in headline(worse)
    assert "(hps) did not move (-0.04, interval -0.14 to +0.06); gold did not move (+0.03" in headline(still)


@pytest.mark.parametrize(
    ("gold", "proxy", "expected"),
    [
        # held-out gains are half the proxy's; an alarm needs a fall of more than 0.1
        ([0, 0.4, 0.2, -0.4], [0, 1.0, 0.6, 0.2], (1280, 640, 640, 640, 0.4, -0.4, "")),
        ([0, 0.4, -0.4, -1.0], [0, 1, 2, 2.5], (None, 640, 1920, None, -1.0, -1.0, "missed")),
        ([0, 0.1, 0.2, 0.3], [0, 1.0, 0.6, 1.2], (1280, 1920, 640, -640, 0.1, 0.3, "false alarm")),
        ([0, 0.4, 0.1, 0.0], [0, 1.0, 0.6, 1.2], (1280, 640, 640, 640, 0.4, 0.0, "false alarm")),  # it fell by 0.4 only
        ([0, 0.1, 0.1, 0.5, -0.5], [0, 1, 0.6, 1, 1], (1280, 1920, 640, -640, 0.1, -0.5, "early")),
        ([0, 0.1, 0.2, 0.3], [0, 1.0, 1.6, 2.2], (None, 1920, 1920, None, 0.3, 0.3, "")),
    ],
)
def test_detection_by_hand(tmp_path, gold, proxy, expected):
    found = detect(find_runs([str(make_run(tmp_path / "run", gold, proxy))])[0], signal="trained", margin=0.1)
    told = (found.alarm, found.judge_peak, found.best, found.delay, found.shipped, found.last, found.verdict)
    assert told == expected and found.held_out == found.shipped / 2


def test_best_of_n_is_a_treatment_of_its_own(tmp_path):
    run, control = (make_run(tmp_path / name, [0, 0.4, 0.2], [0, 1, 2]) for name in ("run", "control"))
    config = OmegaConf.load(control / "config.yaml")
    OmegaConf.save(OmegaConf.merge(config, {"task": "best_of_n"}), control / "config.yaml")
    rows = (control / "metrics.jsonl").read_text()
    (control / "metrics.jsonl").write_text(rows.replace('"reward_queries"', '"best_of_n/n"'))
    rows = [json.loads(line) for line in (control / "metrics.jsonl").read_text().splitlines()[:-1]]
    rows = [row | {"reward_queries": 2 * row["best_of_n/n"]} for row in rows]  # of two rewards
    (control / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    runs = find_runs([str(run), str(control)])
    assert list(cross_reward_matrix(runs).data[0].y) == ["hps", "best of n by hps"]
    assert headline(runs[1]).startswith("Choosing the best of up to 1,280 base samples by hps")
    assert "gold peaked at the best of 640 (+0.40)" in headline(runs[1])


def with_rows(folder: Path, change) -> Path:
    """The run with other rows."""
    lines = [line for line in (folder / "metrics.jsonl").read_text().splitlines() if line.endswith("}")]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(change(json.loads(line))) + "\n" for line in lines))
    return folder


def gradients(row: dict) -> dict:
    return row | {"reward_gradients": 2 * row["reward_queries"]}


@pytest.mark.parametrize(
    ("x", "title", "places", "of_iterations"),
    [
        ("reward_queries", "reward queries [images]", [0, 640, 1280], [64, 704, 1344]),
        ("reward_gradients", "reward gradients [images]", [0, 1280, 2560], [128, 1408, 2688]),
        ("kl", "sqrt(KL from the base) [nats^½]", [0, 1, 2], [64, 704, 1344]),  # iterations know no KL
        ("iterations", "iterations", [0, 10, 20], [1, 11, 21]),
    ],
)
def test_all_curves_over_the_chosen_axis(tmp_path, x, title, places, of_iterations):
    watched = {"kind": "watch", "iteration": 10, "reward_queries": 640, "watch/alarm": 1}
    folder = with_rows(make_run(tmp_path / "run", [0, 0.4, 0.2], [0, 1, 2]), gradients)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(watched) + "\n")
    runs = find_runs([str(folder)])
    lay_out(runs, x)
    curves = reward_curves(runs[0])
    lines = [line for line in curves.data if line.name == "gold"]
    assert [list(line.x) for line in lines] == [places] and curves.layout.xaxis.title.text == title
    drawn = [shape.x0 for shape in curves.layout.shapes]
    assert drawn[-1] == places[1]  # the alarm
    assert drawn[:-1] == ([] if x == "kl" else of_iterations[1:2])  # the reset
    (looks,) = small_multiples(runs, {"pictures/vendi": "v"}, "evaluation")
    assert list(looks.data[0].x) == places and looks.layout.xaxis.title.text == title
    (health,) = small_multiples(runs, {"reset/share": "r"}, "iteration")
    assert list(health.data[0].x) == of_iterations
    assert list(health_by_step(runs[0])[0].data[0].x) == of_iterations and list(kl_profile(runs[0]).data[0].x) == places
    assert title.split("^")[0] in write_report(runs, folder / "report.html").read_text()


def test_gold_is_golden_and_its_held_out_line_is_named():
    """Whatever the rewards are, and however many."""
    palette = places_in_palette(["hps", "pickscore", "gold", "aesthetic"])
    assert COLOURS[palette.pop("gold")] == GOLDEN
    assert len(set(palette.values())) == 3 and COLOURS.index(GOLDEN) not in palette.values()
    many = places_in_palette([f"r{k}" for k in range(12)]).values()  # colours begin anew
    assert len(set(many)) == 12 and not {colour_of(k) for k in many} & {colour_of(COLOURS.index(GOLDEN))}


def test_an_axis_that_a_run_lacks_is_told_in_a_sentence(tmp_path):
    plain = make_run(tmp_path / "plain", [0, 0.4], [0, 1])
    none = with_rows(make_run(tmp_path / "none", [0, 0.4], [0, 1]), lambda row: row | {"reward_gradients": 0})
    still = with_rows(
        make_run(tmp_path / "still", [0, 0.4], [0, 1]), lambda row: {k: v for k, v in row.items() if "kl/" not in k}
    )
    control = make_run(tmp_path / "control", [0, 0.4], [0, 1])
    config = OmegaConf.merge(OmegaConf.load(control / "config.yaml"), {"task": "code", "code": {"block_size": 2}})
    OmegaConf.save(config, control / "config.yaml")
    for folder, x, message in (
        (plain, "reward_gradients", "for it has not logged reward_gradients"),
        (none, "reward_gradients", "for its reward_gradients stays 0"),
        (still, "kl", "for it has not logged kl/sqrt"),
        (control, "iterations", "for nothing is trained in it"),
    ):
        runs = find_runs([str(folder)])
        with pytest.raises(UserError, match=f"--x {x}: .*{folder.name} cannot be drawn over it, {message}: choose"):
            lay_out(runs, x)
        assert runs[0].x is None


def test_the_control_is_drawn_where_it_is_of_the_same_base_prompts_and_reward(tmp_path):
    folder, known = make_run(tmp_path / "run", [0, 0.4], [0, 1]), tmp_path / "card.json"
    settings = {"policy": {"path": "base", "guidance": 1.0}, "prompts": {"_target_": "animals"}}
    settings["suite"] = {"control": str(known), "rewards": {"hps": {"path": "weights"}}}
    OmegaConf.save(OmegaConf.merge(OmegaConf.load(folder / "config.yaml"), settings), folder / "config.yaml")
    config = find_runs([str(folder)])[0].config
    curves = {"n": [1, 2], "hps/proxy": [0, 1], "hps/gold": [0, 0.5], "hps/of": choice_among(config, "hps")}
    known.write_text(json.dumps({"best_of_n": curves}))
    assert find_runs([str(folder)])[0].control == {"n": [1, 2], "proxy": [0, 1], "judge": [0, 0.5]}
    OmegaConf.save(OmegaConf.merge(config, {"policy": {"guidance": 3.0}}), folder / "config.yaml")
    assert find_runs([str(folder)])[0].control is None


def test_one_page_without_a_network(tmp_path):
    folder = make_run(tmp_path / "run", [0, 0.4, -0.4, -1.0], [0, 1, 2, 2.5])
    page = write_report(find_runs([str(folder)]), folder / "report.html").read_text()
    own = re.sub(r"<script>/\*\*.*?</script>", "", page, count=1, flags=re.DOTALL)  # all but plotly.js itself
    assert "plotly.js" in page and not re.search(r"(src|href)=\"https?:", own)
    assert own.count("plotly-graph-div") >= 6  # curves, two by step, proxy against gold, frontier, matrix, looks
    assert own.count("data:image/webp;base64,") >= 4
    assert "R²" in own or "R\\u00b2" in own
    assert "gold peaked at 640 queries" in own
    assert "The watch against gold" in own and "missed" in own


def test_runs_are_labelled_by_what_sets_them_apart(tmp_path):
    make_run(tmp_path / "a", [0, 1], [0, 1], seed=0)
    make_run(tmp_path / "deeper/b", [0, 1], [0, 1], seed=1, trained="aesthetic")
    runs = find_runs([str(tmp_path)])
    assert differences(runs) == ["train_reward", "seed"]
    assert [run.label for run in runs] == ["train_reward=hps, seed=0", "train_reward=aesthetic, seed=1"]
    page = write_report(runs, tmp_path / "report.html").read_text()
    assert "How the runs differ" in page and "Cross-reward matrix" in page


def test_the_matrix_has_a_row_for_every_treatment_and_t_intervals_over_seeds(tmp_path):
    for seed, gold in enumerate((0.1, 0.2, 0.6)):
        make_run(tmp_path / f"a{seed}", [0, gold], [0, 1], seed=seed)
    other = make_run(tmp_path / "b", [0, -0.5], [0, 1])
    config = OmegaConf.load(other / "config.yaml")
    OmegaConf.save(
        OmegaConf.merge(config, {"reset": {"_target_": "x.ActiveReset", "ratio": 0.5}}), other / "config.yaml"
    )
    for seed in range(3):
        mine = tmp_path / f"a{seed}/config.yaml"
        OmegaConf.save(OmegaConf.merge(OmegaConf.load(mine), {"reset": {"_target_": "x.NoReset", "ratio": 1}}), mine)
    runs = find_runs([str(tmp_path)])
    assert {name: len(part) for name, part in treatments(runs).items()} == {"hps, NoReset": 3, "hps, ActiveReset": 1}
    mean, low, high = matrix_rows(runs)["hps, NoReset"]["gold"]
    half = 4.30265 * statistics.stdev([0.1, 0.2, 0.6]) / 3**0.5
    assert (mean, low, high) == pytest.approx((0.3, 0.3 - half, 0.3 + half))
    assert matrix_rows(runs)["hps, ActiveReset"]["gold"] == pytest.approx(
        (-0.5, -0.6, -0.4)
    )  # its interval over prompts
    write_report(runs, tmp_path / "report.html")
    lines = (tmp_path / "report_matrix.csv").read_text().splitlines()
    assert lines[0] == "trained_on,evaluated_on,runs,gain,low,high"
    assert '"hps, ActiveReset",gold,1,-0.5000,-0.6000,-0.4000' in lines


def test_the_matrix_is_of_finished_runs_where_there_are_any(tmp_path):
    for seed, gains in enumerate(([0, 1], [0, 0.5], [0])):
        make_run(tmp_path / f"{seed}", [0 for _ in gains], gains, seed=seed)
    stopped = tmp_path / "2/config.yaml"
    stopped.write_text(stopped.read_text().replace("iterations: 0", "iterations: 10"))
    runs = find_runs([str(tmp_path)])
    assert [run.finished for run in runs] == [True, True, False]
    assert matrix_rows(runs)["hps"]["hps"][0] == pytest.approx(0.75)
    assert matrix_rows(runs[2:])["hps"]["hps"][0] == 0


def test_an_option_younger_than_a_run_sets_no_runs_apart(tmp_path):
    for seed, reset in enumerate(({"ratio": 1.0}, {})):
        path = make_run(tmp_path / f"{seed}", [0, 1], [0, 1], seed=seed) / "config.yaml"
        config = OmegaConf.load(path)
        suite = {"lr": {"full": {"gradient": 2e-5}}} if seed else {}
        reset = {"_target_": "src.resets.none.NoReset"} | reset
        OmegaConf.save(OmegaConf.merge(config, {"reset": reset, "suite": suite}), path)
        if seed:
            path.write_text("threads: 2\nmax_grad_norm: 1.0\n" + path.read_text())
            path.write_text("regulariser:\n  _target_: src.regularisers.none.NoRegulariser\n" + path.read_text())
    assert differences(find_runs([str(tmp_path)])) == ["seed"]


def test_treatments_are_named_by_what_tells_them_apart(tmp_path):
    cells = {
        "hps, DDPO, schedule=timestep": {"algorithm": {"_target_": "x.DDPO", "schedule": "timestep"}},
        "hps, DDPO, schedule=trajectory, lr=1": {"algorithm": {"_target_": "x.DDPO", "schedule": "trajectory"}},
        "hps, DDPO, schedule=trajectory, lr=2": {
            "algorithm": {"_target_": "x.DDPO", "schedule": "trajectory"},
            "optimizer": {"lr": 2},
        },
        "hps, TDPO": {"algorithm": {"_target_": "x.TDPO", "schedule": "timestep", "clip": 1}},
    }
    for k, options in enumerate(cells.values()):
        for seed in (0, 1):
            file = make_run(tmp_path / f"{k}-{seed}", [0, 1], [0, 1], seed=seed) / "config.yaml"
            OmegaConf.save(OmegaConf.merge({"optimizer": {"lr": 1}}, OmegaConf.load(file), options), file)
    found = treatments(find_runs([str(tmp_path)]))
    assert {name: len(part) for name, part in found.items()} == dict.fromkeys(cells, 2)


def test_a_choice_has_the_name_of_the_command_line(tmp_path):
    for name in ("none", "full"):
        file = make_run(tmp_path / name, [0, 1], [0, 1]) / "config.yaml"
        target = {"_target_": f"src.resets.{name}.{'NoReset' if name == 'none' else 'FullReset'}"}
        own = {"shrink": 0.3} if name == "full" else {}
        OmegaConf.save(OmegaConf.merge(OmegaConf.load(file), {"reset": target | own}), file)
    runs = find_runs([str(tmp_path)])
    assert list(treatments(runs)) == ["hps, reset=full", "hps, reset=none"]
    assert [run.label for run in runs] == ["reset=full, shrink=0.3", "reset=none"]


def test_folders_without_runs_are_told(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        find_runs([str(tmp_path)])
    command = [sys.executable, "-m", "src.report", str(tmp_path / "nowhere")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (
        2,
        f"error: {tmp_path}/nowhere: no such folder; name a run, such as runs/NAME, or a folder of runs.",
    )


def test_without_gold_the_other_rewards_stand_in(tmp_path):
    folder = with_rows(
        make_run(tmp_path / "run", [0, 9, 9], [0, 1, 2]),
        lambda row: {key: value for key, value in row.items() if "/gold/" not in key},
    )
    runs = find_runs([str(folder)])
    figure = proxy_against_judge(runs)
    assert list(figure.data[0].x) == [0, 1, 2] and list(figure.data[0].y) == [0, 0.5, 1.0]  # aesthetic's
    assert figure.layout.yaxis.title.text == "gain of the other rewards [base sd]"
    assert list(kl_frontier(runs).data[0].y) == [0, 0.5, 1.0] and len(kl_frontier(runs).data) == 1  # no fit
    page = write_report(runs, tmp_path / "report.html").read_text()
    assert "Proxy against the other rewards" in page and "The other rewards over distance" in page
