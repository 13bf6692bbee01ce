"""The leaderboard: entries, commands, figures of merit, tuning, ranking; the whole on runs that a study keeps."""

import math
import os
import shutil
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from experiments.leaderboard import __main__ as board
from experiments.leaderboard import entries as listed
from experiments.leaderboard import merit, plan, ranking, tables, tuning
from experiments.leaderboard.entries import REWARDS, entries
from src.config import check
from src.errors import UserError
from src.report.runs import Run
from src.runs.sweeps import job_name
from tests.conftest import ROOT, composed

NAN = float("nan")
ALL = list(entries().values())


# ------------------------------------------------------------------------------------------------------------ entries


@pytest.mark.parametrize("entry", [entry for entry in ALL if entry.runs], ids=lambda entry: entry.name)
def test_every_entry_composes(entry):
    """With its last try; on the reward whose overrides are not everybody's."""
    choice = entry.tries[-1] if entry.tries else ()
    asked = [*entry.asked("aesthetic", 3, choice), *(["weights=some"] if entry.weights_of else [])]
    cfg = check(composed(*asked))
    if entry.weights_of:
        return  # as the run that they are of
    assert (cfg["threads"], cfg["seed"], cfg["iterations"]) == (1, 3, listed.ITERATIONS)
    assert cfg["iterations"] * cfg["samples_per_iteration"] == listed.PICTURES["aesthetic"]
    told = cfg["suite"]["rewards"][cfg["train_reward"]]
    first = told.get("members", [told])[0]
    assert first == cfg["suite"]["rewards"]["aesthetic"]


def test_all_algorithms_have_as_many_tries_and_all_else_takes_theirs():
    assert {len(entry.tries) for entry in ALL if entry.tune} == {4}
    trained = [entry for entry in ALL if entry.runs and not entry.weights_of and entry.family != "without training"]
    for entry in trained:
        assert bool(entry.tune) != bool(entry.takes), entry.name
        if entry.takes:  # one change: the first overrides are those of what it is held against
            of = entries()[entry.takes]
            assert of.tune and (entry.overrides[: len(of.overrides)] == of.overrides or entry.name == "tdpo_r")
    draft = entries()["draft"]
    assert draft.tries[1] == ("lr_factor=1", "algorithm.last_steps=3")


def test_runs_are_looked_for_where_hydra_puts_them():
    """It writes numbers in its own way: 3e-4 as 0.0003."""
    for entry in (entry for entry in ALL if entry.runs):
        for choice in entry.tries or [()]:
            asked = [override for override in entry.asked("hps", 3, choice) if not override.startswith("+")]
            parsed = OverridesParser.create().parse_overrides(asked)
            made = [f"{override.get_key_element()}={override.get_value_element_as_str()}" for override in parsed]
            assert job_name(made, []) == job_name(asked, []), entry.name


# ------------------------------------------------------------------------------------------------------------ commands


@pytest.fixture
def place(monkeypatch, tmp_path):
    """The leaderboard's own files, in a folder of this test."""
    for module in (listed, plan, board, tables, tuning):
        for name, folder in {"HERE": "", "RUNS": "runs", "TUNING": "tuning", "CHECK": "check"}.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, tmp_path / folder)
        for name in ("MADE", "TUNED", "ANEW", "CHECKED"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, tmp_path / name.lower())
    shutil.copy(ROOT / "experiments/leaderboard/entries.yaml", tmp_path)
    shutil.copy(ROOT / "experiments/leaderboard/predictions.yaml", tmp_path)
    (tmp_path / "chosen.yaml").write_text("ddpo: {hps: [lr_factor=10], aesthetic: [lr_factor=5]}\n")
    return tmp_path


def the_lines(what, *options, **selected) -> list[str]:
    asked = {"seeds": "", "methods": "", "rewards": "", "other_gold": "gold"} | selected
    return plan.lines(Namespace(what=what, options=list(options), **asked))


def test_the_board_goes_seed_by_seed_with_what_tuning_has_chosen(place):
    lines = the_lines("board", "logger=none", seeds="0 1", methods="ddpo ema")
    told = [line.split("--")[0] for line in lines]
    assert [("regulariser=ema" in line, "train_reward=hps" in line, "seed=1" in line) for line in told] == [
        (average, hps, second) for second in (False, True) for average in (False, True) for hps in (True, False)
    ]
    assert all(("lr_factor=10" in line) == ("train_reward=hps" in line) and "logger=none" in line for line in told)
    with pytest.raises(UserError, match=r"grpo on hps is not tuned yet: run experiments/leaderboard/run.sh tune"):
        the_lines("board", methods="grpo")
    with pytest.raises(UserError, match=r"num_steps=5 would make other runs than the board's"):
        the_lines("board", "num_steps=5")
    with pytest.raises(UserError, match="METHODS=dpo is none of base, best_of_n"):
        the_lines("board", methods="dpo")


def test_what_is_kept_is_not_run_again(place):
    done = listed_name("ddpo", "hps", 1)
    (place / "runs/ddpo").mkdir(parents=True)
    (place / "runs/ddpo" / f"{done}.tar.xz").touch()
    (first,) = the_lines("board", methods="ddpo", rewards="hps", seeds="0,1")  # a block of two, of which one is kept
    assert "seed=0 " in first and "seed=0,1" not in first
    (both,) = the_lines("board", methods="ddpo", rewards="aesthetic", seeds="0,1")
    assert "seed=0,1 " in both
    (anew,) = the_lines("anew", methods="ddpo", rewards="hps", seeds="1")
    assert f"{place}/anew/ddpo" in anew and "src.report.kept" not in anew


def listed_name(method, reward, seed) -> str:
    return plan.folder_of(entries()[method], reward, seed, plan.MADE).name


def test_weights_of_a_run_are_looked_for_where_its_command_leaves_them(place):
    (line,) = the_lines("board", methods="ddpo_scale", rewards="hps", seeds="2")
    assert f"{place}/made/ddpo/{listed_name('ddpo', 'hps', 2)}" in line and "study=leaderboard scale" not in line


def test_tuning_has_eighty_runs_on_a_seed_of_its_own(place):
    lines = the_lines("tune")
    assert len(lines) == 80 and all(" seed=100 " in line for line in lines)
    ramps = [sum(f"lr_factor={ramp} " in line for line in lines) for ramp in (1, 5, 10)]
    assert ramps == [12, 40, 28]  # of three methods through the reward, and of seven others


def test_the_script_hands_its_options_on_and_stops_at_what_it_cannot_plan():
    command = [ROOT / "experiments/leaderboard/run.sh", "hydra/launcher=joblib", "logger=none"]
    environment = os.environ | {"PYTHON": sys.executable, "METHODS": "base"}  # which has no run of its own
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "nothing is left to run\n"), done.stderr
    done = subprocess.run([*command, "seed=9"], env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: seed=9 would make other runs")


def test_a_method_of_somebody_elses(place):
    lines = the_lines("enter", "mine", "+experiment=ddpo", "lr_factor=7")
    assert len(lines) == 10 and all("lr_factor=7" in line and "multirun" not in line for line in lines)
    for name in ("ddpo", "my method", ""):
        with pytest.raises(UserError, match="give your method a name of its own"):
            the_lines("enter", name)


# ------------------------------------------------------------------------------------------------------------ tuning


def tried(*rows: tuple[float, float]) -> list[dict[str, float]]:
    return [{"trained reward": gain, "KL": kl} for gain, kl in rows]


def test_the_highest_reward_within_the_bound_is_chosen():
    assert tuning.best(tried((1.0, 900), (1.4, 9_999), (2.0, 10_001), (1.4, 50))) == 1
    assert tuning.best(tried((1.0, 20_000), (2.0, 15_000), (0.5, 30_000))) == 1  # none is within: the nearest
    assert tuning.best(tried((NAN, 10), (0.2, 50_000))) == 1  # what had to stop is no choice
    assert tuning.best(tried((NAN, 10))) is None


def test_tuning_reads_the_trained_reward_and_kl_alone(tmp_path):
    run = a_run([0, 1.0], [0, 9.0], kl=[0, 7.0])
    run.folder = tmp_path
    assert tuning.row_of(run) == {"trained reward": 1.0, "KL": 49.0}
    (tmp_path / "stopped.json").touch()
    assert math.isnan(tuning.row_of(run)["trained reward"]) and math.isnan(tuning.row_of(None)["KL"])


def test_what_is_chosen_is_written_for_entries_all_of_whose_tries_are_kept(place, capsys):
    tries = entries()["ddpo"].tries
    (place / "tuning/ddpo").mkdir(parents=True)
    for seed, each in enumerate(tries):  # trained rewards of a study's runs, whose KL ends below the bound
        name = plan.job_name(plan.tried_overrides(entries()["ddpo"], "aesthetic", each), [])
        shutil.copy(KEPT / f"{ARMS['tdpo']},seed={seed},study=critic.tar.xz", place / f"tuning/ddpo/{name}.tar.xz")
    tuning.main()
    found = tuning.tried(entries()["ddpo"], "aesthetic")
    best = max(range(4), key=lambda k: found[k]["trained reward"])
    assert listed.chosen() == {"ddpo": {"aesthetic": list(tries[best])}}
    assert "not all tries of ddpo on hps are there yet" in capsys.readouterr().out
    rows = [line for line in (place / "tuning.md").read_text().splitlines() if "| ddpo |" in line]
    assert len(rows) == 4 and [k for k, row in enumerate(rows) if row.endswith("| yes |")] == [best]


# ------------------------------------------------------------------------------------------------------------ figures


def a_run(proxy, gold, others=None, kl=None, seed=0, trained="hps", **config) -> Run:
    """An evaluation every two iterations of 32; the other two rewards gain `others`, or as much."""
    rows = []
    for k, (p, g) in enumerate(zip(proxy, gold, strict=True)):
        other = p if others is None else others[k]
        distance = float(10 * k) if kl is None else kl[k]
        rows.append(
            {
                "iteration": 2 * k,
                "reward_queries": 64 * k,
                "reward_gradients": 0,
                "eval/hps/gain": p,
                "eval/pickscore/gain": other,
                "eval/aesthetic/gain": other,
                "eval/gold/gain": g,
                "held_out/gold/gain": g - 0.1,
                "kl/trajectory": distance**2,
                "kl/sqrt": distance,
                "pictures/vendi": 1.5 - 0.1 * k,
            }
        )
    watch = {"signal": "agreement", "margin": 0.5, "patience": 1, "keep": "last"}
    settings = {
        "task": "finetune",
        "train_reward": trained,
        "seed": seed,
        "iterations": 25,
        "samples_per_iteration": 32 if trained == "aesthetic" else 64,
        "reset": {},
        "suite": {"rewards": {"hps": {"path": "h"}, "pickscore": {"path": "p"}, "aesthetic": {"path": "a"}}},
        "callbacks": {"watch": watch},
    }
    iterations = [{"iteration": 25, "optimizer_steps": 250, "seconds": 160.0}]
    return Run(Path("nowhere"), settings | config, iterations, rows)


def test_figures_of_a_run_by_hand():
    # the others fall 0.2 and 0.6 behind the trained reward: the alarm is at the third evaluation, the second is shipped
    found = merit.figures(a_run([0, 0.8, 1.6, 2.4], [0, 0.3, 0.1, -0.9], others=[0, 0.6, 1.0, 0.8]))
    assert (found["gold_shipped"], found["shipped"], found["alarm"]) == (0.3, 1, 1)
    assert found["held_out_gold_shipped"] == pytest.approx(0.2) and found["proxy_shipped"] == 0.8
    assert found["gold_at_1"] == pytest.approx(0.25)  # a quarter of the way from 0.3 to 0.1
    assert found["gold_at_2"] == pytest.approx(-0.4) and found["vendi_at_1"] == pytest.approx(1.375)
    assert found["sqrt_kl_at_1"] == pytest.approx(12.5) and found["gap_at_1"] == pytest.approx(0.8)
    assert found["gold_at_sqrt_kl_20"] == pytest.approx(0.1) and math.isnan(found["gold_at_sqrt_kl_40"])
    assert (found["gold_peak"], found["gold_end"]) == (0.3, -0.9) and found["overoptimization"] == pytest.approx(1.2)
    assert found["held_out_gold_end"] == pytest.approx(-1.0) and found["proxy_end"] == 2.4
    assert (found["reward_queries"], found["optimizer_steps"], found["seconds"]) == (192, 250, 160.0)


def test_a_watch_that_never_speaks_ships_the_last_weights_and_one_that_speaks_at_once_the_base():
    silent = merit.figures(a_run([0, 1, 1.4], [0, 0.2, 0.1]))
    assert (silent["gold_shipped"], silent["shipped"], silent["alarm"]) == (0.1, 2, 0)
    at_once = merit.figures(a_run([0, 1, 1.4], [0, 0.2, 0.1], others=[0, 0.1, 0.1]))
    assert (at_once["gold_shipped"], at_once["shipped"], at_once["alarm"]) == (0, 0, 1)
    without = merit.figures(a_run([0, 1], [0, 0.2], callbacks={}))
    assert math.isnan(without["gold_shipped"]) and math.isnan(without["alarm"])


def test_a_level_that_is_never_reached_or_leapt_over_has_no_reading():
    found = merit.figures(a_run([0, 1.2, 1.4], [0, 0.2, 0.1], kl=[0, 30, 35]))
    assert math.isnan(found["gold_at_1"]) and found["gap_at_1"] == 1.2
    assert math.isnan(found["gold_at_1.5"]) and math.isnan(found["gap_at_1.5"])
    assert math.isnan(found["gold_at_sqrt_kl_20"])
    (row,) = tables.blanks(pd.DataFrame([{"arm": "a"} | found])).to_dict("records")
    assert (row["leaps over +1"], row["never at +1"], row["never at +1.5"], row["leaps over +1.5"]) == (1, 0, 1, 0)


def test_area_over_best_of_n_by_hand(monkeypatch):
    curve = {"proxy": [0.0, 0.4, 1.2], "judge": [0.0, 0.4, 0.4]}
    monkeypatch.setattr(Run, "control", property(lambda self: curve))
    # differences at 0, 0.4, 0.8, 1: 0, -0.2, 0, 0 and the method's gold 0, 0.2, 0.4, 0.4
    run = a_run([0, 0.8, 1.6], [0, 0.4, 0.4])
    assert merit.figures(run)["area_to_1"] == pytest.approx(-0.2 * 0.4 / 2 - 0.2 * 0.4 / 2)
    assert merit.area_over_best_of_n(run, to=1.2) == pytest.approx(-0.08)
    assert math.isnan(merit.area_over_best_of_n(run, to=1.4))  # where best of n ends before
    assert math.isnan(merit.area_over_best_of_n(a_run([0, 0.8], [0, 0.4]), to=1))  # where the run does
    monkeypatch.setattr(Run, "control", property(lambda self: None))
    assert math.isnan(merit.area_over_best_of_n(run, to=1))


def test_gold_is_read_where_the_other_rewards_have_fallen_behind():
    """Agreements of 0, -0.2 and -0.6 pass -0.5 three quarters of the way."""
    run = a_run([0, 0.5, 1.0, 1.5], [0, 0.2, 0.4, 0.1], others=[0, 0.3, 0.4, 0.5])
    assert merit.figures(run)["gold_at_alarm"] == pytest.approx(0.35)
    assert merit.figures(a_run([0, 0.5], [0, 0.2]))["gold_at_alarm"] == 0.2  # they never do
    falls = a_run([0, 0.5], [0, 0.2], others=[0, -9.0])
    assert merit.figures(falls)["gold_at_alarm"] == pytest.approx(0.2 * 0.5 / 9.5)


def test_of_a_method_that_asks_more_rewards_the_same_number_of_them_is_read_too():
    run = a_run([0, 1.0, 2.0], [0, 0.4, 0.2])
    for row, queries in zip(run.evaluations, (0, 1400, 1800), strict=True):
        row["reward_queries"] = queries
    found = merit.figures(run)
    assert found["proxy_at_budget"] == pytest.approx(1.5) and found["gold_at_budget"] == pytest.approx(0.3)
    assert math.isnan(merit.figures(replace(run, config=run.config | {"task": "code"}))["gold_at_budget"])


def test_of_an_ensemble_the_board_reads_the_first_member_and_the_watch_none():
    run = a_run([0, 0.6, 0.9], [0, 0.1, 0.2], others=[0, 0.5, 0.2], trained="ensemble")
    rewards = run.config["suite"]["rewards"]
    rewards["ensemble"] = {"members": [rewards["hps"], rewards["pickscore"]]}
    for row, gain in zip(run.evaluations, (0, 0.7, 0.8), strict=True):
        row["eval/ensemble/gain"] = gain
    assert merit.as_entered(run).trained == "hps"
    found = merit.figures(run)  # agreement: aesthetic less ensemble, 0, -0.2, -0.6
    assert (found["proxy_end"], found["shipped"], found["gold_shipped"]) == (0.9, 1, 0.1)


def test_of_averaged_weights_the_average_is_read_when_the_watch_says():
    run = a_run([0, 0.8, 1.6], [0, 0.3, 0.1], others=[0, 0.6, 1.0])
    for row, gain in zip(run.evaluations, (0, 0.5, 0.7), strict=True):
        row |= {f"eval_ema/{name}/gain": gain for name in ("hps", "pickscore", "aesthetic", "gold")}
        row |= {"held_out_ema/gold/gain": gain, "kl_ema/trajectory": gain, "kl_ema/sqrt": gain}
        row |= {"pictures_ema/vendi": 2 + gain}
    found = merit.figures(run)
    assert (found["shipped"], found["gold_shipped"], found["gold_end"], found["kl_end"]) == (1, 0.5, 0.7, 0.7)
    assert found["vendi_shipped"] == 2.5


# ------------------------------------------------------------------------------------------------------------ ranking


def table(**golds) -> pd.DataFrame:
    rows = [
        {"arm": arm, "seed": seed, "train_reward": reward, "gold_shipped": gold + (reward == "hps")}
        for arm, values in golds.items()
        for seed, gold in enumerate(values)
        for reward in ("hps", "aesthetic")
    ]
    return pd.DataFrame(rows)


def test_the_ranking_tells_neighbours_apart_or_not():
    found = table(low=[0.1, 0.1, 0.1], high=[0.51, 0.52, 0.53], near=[0.5, 0.53, 0.52], also_low=[0.1, 0.1, 0.1])
    shown = ranking.ranking(ranking.over_rewards(found, REWARDS)).set_index("arm")
    assert list(shown.index) == ["high", "near", "also_low", "low"] and list(shown["rank"]) == [1, 2, 3, 3]
    assert list(shown["told apart"]) == ["no", "yes", "tie", ""]
    assert shown.gold_shipped["high"] == pytest.approx(1.02) and shown.seeds["high"] == 3
    # 0.01, -0.01, 0.01: mean 0.0033, half-width 4.3027 sd / sqrt(3)
    difference = np.array([0.01, -0.01, 0.01])
    assert shown["less the next"]["high"] == pytest.approx(difference.mean())
    half = 4.30265 * difference.std(ddof=1) / math.sqrt(3)
    assert shown.high["high"] == pytest.approx(difference.mean() + half, rel=1e-4)


def test_a_seed_that_lacks_a_reward_is_in_no_mean_over_rewards():
    found = table(a=[0.1, 0.2])
    part = found[(found.train_reward == "hps") | (found.seed == 0)]
    assert ranking.over_rewards(part, REWARDS).seed.tolist() == [0]
    assert ranking.in_order(table(a=[0.1], b=[0.2]).rename(columns={"arm": "method"}), REWARDS) == ["b", "a"]


@pytest.mark.parametrize(("sd", "seeds"), [(1.0, 34), (0.5, 10), (0.0, 2)])
def test_seeds_that_a_paired_t_test_needs(sd, seeds):
    """Cohen's d of 0.5 and 1 at 5% and 80%: 34 and 10 pairs (Cohen 1988; G*Power 3)."""
    assert ranking.seeds_needed(sd, 0.5, 0.05) == seeds
    assert ranking.seeds_needed(1000, 0.5, 0.05) is None


def test_the_sequential_plan_by_hand():
    found = table(tdpo=[0.1, 0.2, 0.3], ddpo=[0.1, 0.21, 0.29], tdpo_r=[0.1, 0.3, 0.2], best=[2.0, 2.11, 2.19])
    rows = ranking.sequential_plan(ranking.over_rewards(found, REWARDS), ["best", "tdpo_r"]).set_index(
        ["arm", "against"]
    )
    assert list(rows.index) == [("best", "tdpo_r"), ("tdpo_r", "tdpo"), ("tdpo", "ddpo")]
    row = rows.loc[("tdpo", "ddpo")]  # 0, -0.01, 0.01 at 0.05 / 2 looks / 3 contrasts: t(1 - 0.0041667, 2) = 10.886
    assert row.sd == pytest.approx(0.01) and row.high == pytest.approx(10.886 * 0.01 / math.sqrt(3), rel=1e-3)
    assert list(rows.decided) == ["apart", "open", "within 0.1"]
    assert rows.seeds[("tdpo", "ddpo")] < 6 < rows.seeds[("tdpo_r", "tdpo")]


@pytest.mark.parametrize(
    ("low", "high", "p", "said", "told"),
    [
        (0.02, 0.3, 0.01, {"above": 0}, "holds"),
        (0.02, 0.3, 0.06, {"above": 0}, "not shown"),  # after the correction
        (0.12, 0.3, 0.06, {"above": 0.1}, "holds"),
        (-0.3, 0.05, 0.5, {"above": 0.1}, "fails"),
        (-0.3, -0.12, 0.01, {"below": -0.1}, "holds"),
        (-0.05, 0.3, 0.01, {"below": -0.1}, "fails"),
        (-0.05, 0.09, 0.6, {"within": 0.1}, "holds"),
        (-0.05, 0.11, 0.6, {"within": 0.1}, "not shown"),
        (0.11, 0.2, 0.01, {"within": 0.1}, "fails"),
        (NAN, NAN, NAN, {"within": 0.1}, "not shown"),
    ],
)
def test_verdicts_of_predictions(low, high, p, said, told):
    assert (
        ranking.verdict(pd.Series({"pairs": 5, "run": True, "low": low, "high": high, "p_adjusted": p}), said) == told
    )


def test_the_readme_has_every_prediction_and_each_can_be_checked():
    page = (ROOT / "experiments/leaderboard/README.md").read_text()
    predictions = yaml.safe_load((ROOT / "experiments/leaderboard/predictions.yaml").read_text())
    columns = merit.figures(a_run([0, 1], [0, 1]))
    for each in predictions:
        assert f"| {each['id']} | {ranking.in_words(each)} |" in page
        assert {each["arm"], each["against"]} <= entries().keys() and each["outcome"] in columns
    shown = ranking.verdicts({}, predictions)
    assert set(shown.verdict) == {"not run"} and len(shown) == len(predictions)
    both = ranking.over_rewards(table(tdpo=[0.1, 0.2, 0.3], ddpo=[0.1, 0.21, 0.29]), REWARDS)
    judged = ranking.verdicts({"both": both}, predictions[:1])
    assert judged.verdict.tolist() == ["holds"] and judged.pairs.tolist() == [3]


# ------------------------------------------------------------------------------------------------------ the whole board


KEPT = ROOT / "experiments/method_2x2/runs"
ARMS = {
    "ddpo": "algorithm.schedule=trajectory,algorithm=ddpo",
    "tdpo": "algorithm.schedule=timestep,algorithm=tdpo,critic=image_tower,critic_epochs=1",
}


@pytest.fixture
def kept(place):
    """Two methods, two seeds, one reward, as a first block leaves it; 'mine' is entered by somebody, with one seed."""
    for name, arm in {**ARMS, "mine": ARMS["ddpo"]}.items():
        (place / "runs" / name).mkdir(parents=True)
        for seed in (0,) if name == "mine" else (0, 1):
            shutil.copy(KEPT / f"{arm},seed={seed},study=critic.tar.xz", place / "runs" / name)
    return place


def test_one_command_makes_everything_from_what_is_kept_to_the_byte(kept, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["leaderboard"])
    made = []
    for _ in range(2):
        board.main()
        made.append([(kept / name).read_bytes() for name in ("results.csv", "tables.md", "curves.png")])
        shutil.rmtree(kept / "made")
    assert made[0] == made[1]
    found = pd.read_csv(kept / "results.csv")
    assert list(found.columns[:4]) == ["method", "train_reward", "seed", "gold_shipped"] and len(found) == 5
    assert found.train_reward.unique().tolist() == ["aesthetic"] and found.gold_at_1.notna().all()
    told = (kept / "tables.md").read_text()
    for title in ("Ranking by gold shipped, on aesthetic", "Against ddpo on aesthetic, paired by seed", "Predictions"):
        assert f"## {title}\n" in told
    assert "both rewards" not in told.replace("the mean of both rewards", "")  # there is one so far


def test_the_rule_that_ships_is_the_one_that_the_watch_followed(kept):
    for runs in board.kept_runs(board.RUNS, board.MADE).values():
        for run in runs:
            signals = [row["watch/signal"] for row in run.watch]
            told = tables.shipment(run)
            assert merit.figures(run)["alarm"] == (run.alarm is not None)
            assert max(signals[: told.index + 1]) - signals[told.index] <= 0.5
            assert run.alarm is None or run.queries[told.index] < run.alarm


def test_runs_of_another_protocol_and_runs_that_are_there_twice_are_refused(kept):
    runs = board.kept_runs(board.RUNS, board.MADE)
    first, config = runs["tdpo"][0], runs["tdpo"][0].config
    runs["tdpo"][0] = replace(first, config=config | {"evaluation": config["evaluation"] | {"kl_samples": 1}})
    with pytest.raises(UserError, match=r"evaluation.kl_samples is \d+ in .*, 1 in "):
        tables.rows_of(runs)
    runs["tdpo"][0] = replace(first, config=config | {"iterations": 50})
    with pytest.raises(UserError, match="trains on 1600 pictures; runs of the leaderboard train on 800"):
        tables.rows_of(runs)
    runs["tdpo"] = [first, first]
    with pytest.raises(UserError, match="tdpo has two kept runs on aesthetic of seed 0"):
        tables.rows_of(runs)


def test_the_base_is_the_first_row_of_best_of_n(kept):
    runs = {"best_of_n": [a_run([0, 0.5, 1.0], [0, 0.3, 0.5], task="code")]}
    found = tables.rows_of(tables.with_base(runs)).set_index("arm")
    assert list(found.index) == ["base", "best_of_n"] and found.gold_shipped["base"] == found.gold_peak["base"] == 0
    assert math.isnan(found.gold_at_1["base"]) and found.reward_queries["base"] == 0


def test_seeds_beyond_the_first_five_count_in_the_plan_alone(place):
    found = pd.concat(
        [
            tables.rows_of({"ddpo": [a_run([0, 1.0], [0, 0.3], seed=seed) for seed in range(7)]}),
            tables.rows_of({"tdpo": [a_run([0, 1.0], [0, 0.2], seed=seed) for seed in range(7)]}),
        ]
    )
    found = pd.concat([found, found.assign(train_reward="aesthetic")])
    made = tables.tables_of(found)
    assert made["Ranking by gold shipped, both rewards"].seeds.tolist() == [5, 5]
    assert made["The sequential plan: gold shipped, both rewards"].pairs.tolist() == [7]


def test_a_block_under_way_has_tables_of_what_there_is(place):
    one = tables.rows_of({"ddpo": [a_run([0, 1.0], [0, 0.3])]})
    other = tables.rows_of({"tdpo": [a_run([0, 1.0], [0, 0.2])]}).assign(train_reward="aesthetic")
    made = tables.tables_of(pd.concat([one, other]))  # no method has both rewards yet
    assert "Ranking by gold shipped, on hps" in made and "Ranking by gold shipped, both rewards" not in made
    assert set(made["Predictions"].verdict) == {"not run"}


def test_runs_made_anew_are_held_against_the_kept_ones(kept):
    runs = board.kept_runs(board.RUNS, board.MADE)
    same = tables.agreement(runs, {"ddpo": runs["ddpo"][:1]})
    assert same["bit for bit"].tolist() == ["yes"] and same.train_reward.tolist() == ["aesthetic"]
    other = a_run([0, 1.0], [0, 0.3], trained="aesthetic")
    assert tables.agreement(runs, {"ddpo": [other], "none": [other]})["bit for bit"].tolist() == ["no"]


def test_the_check_asks_for_both_ends_and_orders_them_by_every_judge(kept):
    names = ("grpo", "ddpo", "draft", "das", "ema", "tdpo", "refl")
    found = table(**{name: [0.7 - 0.1 * k] for k, name in enumerate(names)}).rename(columns={"arm": "method"})
    found.to_csv(kept / "results.csv", index=False)
    (kept / "chosen.yaml").write_text("\n".join(f"{name}: {{hps: [], aesthetic: []}}" for name in names))
    lines = the_lines("check", seeds="0", rewards="hps")
    assert [name for line in lines for name in names if line.split("; ")[0].endswith(f"/checked/{name}")] == [
        *names[:3],
        *names[-3:],
    ]
    assert all("other_gold" in line and "evaluation.seed=1000" in line for line in lines)
    assert f"/made/ema/{listed_name('ema', 'hps', 0)}/best/ema" in lines[3] and "/best" in lines[0]
    one, two = a_run([0, 1], [0, 0.3], weights="x/best"), a_run([0, 1], [0, 0.2], weights="x/best")
    for run, gain in ((one, 0.1), (two, 0.2)):
        run.evaluations[-1] |= {"eval/other_gold/gain": gain, "eval/classifier_top1/gain": -gain}
    shown = tables.independent_check({"a": [two], "b": [one]}).set_index("method")
    assert list(shown.index) == ["b", "a"] and shown["rank by second gold"].tolist() == [2, 1]
    assert shown["rank by classifier"].tolist() == [1, 2]


# ------------------------------------------------------------------------------------------------------------ the door


def test_the_command_of_the_guide_has_ten_runs(place):
    page = (ROOT / "docs/guides/enter_your_method.md").read_text()
    (command,) = [line for line in page.splitlines() if line.startswith("experiments/leaderboard/run.sh enter")]
    lines = the_lines("enter", *command.split()[2:])
    assert len(lines) == 10 and all("algorithm=sign" in line for line in lines)
