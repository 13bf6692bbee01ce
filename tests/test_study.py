"""Tables of a study: readings at equal levels, and comparisons paired by seed, against figures worked out by hand."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from src.errors import UserError
from src.report.runs import Run
from src.report.study import (
    against,
    as_markdown,
    by_arm,
    combined,
    compare,
    crossing,
    means,
    only_finished,
    outcomes,
    recovery,
    single,
    slopes,
    table,
    validity,
    write_tables,
)


def a_run(gold, proxy, seed=0, reset="none", iterations=None) -> Run:
    """Evaluations every ten iterations of 64 queries and 20 optimizer steps."""
    evaluations = [
        {
            "iteration": 10 * k,
            "reward_queries": 640 * k,
            "eval/gold/gain": g,
            "eval/hps/gain": p,
            "eval/aesthetic/gain": 2 * p,
            "held_out/gold/gain": g - 0.1,
            "eval/classifier_top1/mean": 0.9,
            "kl/trajectory": 100.0 * k,
            "kl/sqrt": (100.0 * k) ** 0.5,
            "pictures/vendi": 1.5,
        }
        for k, (g, p) in enumerate(zip(gold, proxy, strict=True))
    ]
    total = 10 * (len(gold) - 1)
    rows = [
        {"iteration": i, "optimizer_steps": 2 * i, "critic/explained_variance": i / total} for i in range(1, total + 1)
    ]
    config = {
        "train_reward": "hps",
        "seed": seed,
        "iterations": iterations or total,
        "reset": {"name": reset},
        "suite": {"rewards": {"hps": {}, "aesthetic": {}}, "judges": {"gold": {}}},
    }
    return Run(Path("nowhere"), config, rows, evaluations)


def test_readings_at_equal_levels():
    found = outcomes(a_run([0, 0.4, 0.2, -0.4], [0, 1, 2, 3]), levels=(1.5,))
    assert found["gold_at_1.5"] == pytest.approx(0.3)  # half way from 0.4 to 0.2
    assert found["cross_at_1.5"] == pytest.approx(3.0) and found["kl_at_1.5"] == pytest.approx(150)
    assert (found["gold_peak"], found["gold_peak_queries"]) == (0.4, 640)
    assert found["overoptimization"] == pytest.approx(0.8) and found["held_out_gold_end"] == pytest.approx(-0.5)
    assert found["explained_variance"] == pytest.approx(np.mean(np.arange(16, 31)) / 30)
    assert math.isnan(found["reset_share"])


def test_readings_at_equal_kl_are_linear_in_its_root():
    found = outcomes(a_run([0, 0.4, 0.2], [0, 1, 2]), at_kl=[25.0, 144.0, 900.0])
    assert found["gold_at_kl_25"] == pytest.approx(0.2) and found["cross_at_kl_25"] == pytest.approx(1.0)
    assert found["proxy_at_kl_144"] == pytest.approx(1 + (12 - 10) / (200**0.5 - 10))
    assert math.isnan(found["gold_at_kl_900"])


def test_what_a_reset_costs_the_critic():
    explained = [0.1, 0.3, 0.2, 0.0, 0.1, 0.3, 0.3, 0.3, 0.0, 0.2, 0.1]
    rows = [{"critic/explained_variance": value} for value in explained]
    run = a_run([0, 1], [0, 1])
    run.iterations = rows
    run.config["reset"]["every"] = 5
    for k, row in enumerate(rows):
        row["reset/share"] = float(k in (4, 9))
    # after the fifth: 0.1 before it (0.2, 0.0, 0.1), 0.3 after it, back at once; after the tenth: 0.5 / 3, 0.1, never
    assert recovery(run) == pytest.approx({"reset_dip": (-0.2 + 0.2 / 3) / 2, "recovery": 1.0, "recovered": 0.5})
    run.config["reset"]["every"] = 4
    for k, row in enumerate(rows):
        row["reset/share"] = float(k == 7)
    # the one after the fourth finds nobody; after the eighth 0.3 before, a dip of 0.3, not back within three
    assert recovery(run) == pytest.approx({"reset_dip": 0.3, "recovery": 3.0, "recovered": 0.0})
    for row in rows:
        row["reset/share"] = 0.0
    run.config["reset"]["every"] = 3  # as if after the third, sixth and ninth
    assert recovery(run)["reset_dip"] == pytest.approx((0.2 - 0.5 / 3 + 0) / 3)
    run.iterations = [{"iteration": 1}]
    assert all(map(math.isnan, recovery(run).values()))


def test_an_arm_may_fail_the_condition_of_a_study():
    found = pd.DataFrame({"arm": ["a", "a", "b"], "explained_variance": [0.02, 0.06, 0.9]})
    assert validity(found, "a", "explained_variance", above=0.05).condition.tolist() == ["not met"]
    assert validity(found, "b", "explained_variance", above=0.05).condition.tolist() == ["met"]


def test_means_say_how_many_runs_they_rest_on():
    found = pd.DataFrame({"arm": ["a", "a", "b"], "x": [1.0, float("nan"), 2.0], "y": [1.0, 2.0, 3.0]})
    shown = means(found, ["x", "y"])
    assert shown["runs with x"].tolist() == [1, 1] and "runs with y" not in shown


def test_crossing_reads_the_first_time_only():
    assert crossing([0, 2, 1, 3], [0, 1, 5, 9], 1.0) == pytest.approx(0.5)
    assert crossing([0, 1], [3, 4], -1) == 3
    assert math.isnan(crossing([0, 1], [0, 1], 1.5))


def arms() -> pd.DataFrame:
    runs = [a_run([0, g], [0, 1.0 + g], seed=s, reset="none") for s, g in enumerate((0.1, 0.2, 0.3))]
    runs += [a_run([0, g], [0, 2.0], seed=s, reset="active") for s, g in enumerate((0.2, 0.4, 0.6))]
    return table(runs, lambda config: config["reset.name"])


def test_arms_are_compared_seed_by_seed():
    found = compare(arms(), ["gold_end"], against(arms(), "none")).iloc[0]
    # differences 0.1, 0.2, 0.3: mean 0.2, sd 0.1, standard error 0.1 / sqrt(3); t(0.975, 2) = 4.3027
    assert found["difference"] == pytest.approx(0.2) and found["d"] == pytest.approx(2.0)
    assert found["high"] - found["difference"] == pytest.approx(4.30265 * 0.1 / math.sqrt(3), rel=1e-5)
    assert found["p"] == pytest.approx(2 * stats.t.sf(2 * math.sqrt(3), 2)) and found["pairs"] == 3


def test_p_values_are_corrected_over_the_whole_table():
    pairs = [("active", "none")]
    both = compare(arms(), ["gold_end", "held_out_gold_end"], pairs)
    assert both.p_adjusted.tolist() == pytest.approx(both.p.tolist())  # two equal p: 2 p / 2
    found = arms()
    found["noise"] = [0.1, 0.2, 0.4, 0.2, 0.1, 0.5]
    wide = compare(found, ["gold_end", "noise"], pairs)
    low, high = sorted(wide.p)
    assert sorted(wide.p_adjusted) == pytest.approx([min(2 * low, high), high])


def test_means_have_t_intervals():
    found = means(arms(), ["gold_end"]).set_index("arm")
    assert found.loc["active", "gold_end"] == pytest.approx(0.4) and found.loc["active", "seeds"] == 3
    assert found.loc["active", "gold_end +-"] == pytest.approx(4.30265 * 0.2 / math.sqrt(3), rel=1e-5)


def test_runs_are_grouped_by_arm():
    runs = [a_run([0, 1], [0, 1], reset=name) for name in ("none", "active", "none")]
    assert {name: len(part) for name, part in by_arm(runs, lambda c: c["reset.name"]).items()} == {
        "active": 1,
        "none": 2,
    }


def test_what_cannot_be_compared_is_told():
    with pytest.raises(UserError, match="full is none of the arms active, none"):
        compare(arms(), ["gold_end"], [("active", "full")])
    with pytest.raises(UserError, match="two runs of seed 0"):
        table([a_run([0, 1], [0, 1]), a_run([0, 1], [0, 1])], lambda config: "all")
    with pytest.raises(UserError, match="is not finished"):
        table([a_run([0, 1], [0, 1], iterations=99)], lambda config: "all")
    with pytest.raises(UserError, match="none of these runs is finished"):
        only_finished([a_run([0, 1], [0, 1], iterations=99)])


def test_a_run_that_the_watch_stopped_is_finished(tmp_path):
    run = a_run([0, 1], [0, 1], iterations=99)
    run.folder = tmp_path
    (tmp_path / "summary.json").touch()
    assert only_finished([run]) == [run]


def test_other_rewards_are_not_those_of_an_ensemble():
    run = a_run([0, 1], [0, 1])
    rewards = {"hps": {"path": "a"}, "aesthetic": {"path": "b"}}
    run.config |= {"train_reward": "ensemble"}
    run.config["suite"]["rewards"] = rewards | {"ensemble": {"members": [rewards["hps"]]}}
    for row in run.evaluations:
        row["eval/ensemble/gain"] = row["eval/hps/gain"]
    assert outcomes(run)["cross_end"] == 2.0  # aesthetic alone


def test_unfinished_runs_are_left_out_and_named(capsys):
    done = a_run([0, 1], [0, 1])
    assert only_finished([done, a_run([0, 1], [0, 1], iterations=99)]) == [done]
    assert "left out, for it is not finished: nowhere" in capsys.readouterr().out


def test_no_difference_is_a_verdict_of_its_own():
    found = pd.DataFrame({"arm": ["a"] * 4 + ["b"] * 4, "seed": [0, 1, 2, 3] * 2})
    found["equal"] = [0.0] * 4 + [0.01, -0.01, 0.02, -0.02]  # t interval +-0.029
    found["wild"] = [0.0] * 4 + [1.0, -1.0, 0.5, -0.2]
    found["far"] = [0.0] * 4 + [1.0, 1.1, 0.9, 1.0]
    found["near"] = [0.0] * 4 + [0.05, 0.055, 0.045, 0.05]
    verdicts = compare(found, ["equal", "wild", "far", "near"], [("b", "a")], margin=0.1).verdict.tolist()
    assert verdicts == ["within margin", "undecided", "differs", "differs, within margin"]
    assert compare(found, ["equal"], [("b", "a")]).verdict.tolist() == ["undecided"]  # no margin


def test_an_interaction_is_a_sum_of_arms_seed_by_seed():
    found = pd.DataFrame({"arm": ["a"] * 3 + ["b"] * 3, "seed": [0, 1, 2] * 2, "x": [1.0, 2.0, 3.0, 1.5, 3.5, 5.5]})
    row = combined(found, ["x"], {"twice b less a": {"b": 2, "a": -1}, "of a missing arm": {"c": 1}}).iloc[0]
    assert row.of == "twice b less a" and row.pairs == 3 and row.difference == pytest.approx((2 + 5 + 8) / 3)
    assert len(combined(found, ["x"], {"of a missing arm": {"c": 1}})) == 0


def test_a_slope_for_each_seed():
    found = pd.DataFrame({"seed": [0, 0, 0, 1, 1, 1, 2], "share": [0, 0.5, 1] * 2 + [1], "x": [1, 2, 3, 0, 2, 4, 9.0]})
    row = slopes(found, ["x"], "share").iloc[0]  # 2 and 4; a seed with one share has none
    assert row.pairs == 2 and row.difference == pytest.approx(3.0) and row.high - row.low > 0
    found.loc[1, "x"] = math.nan  # a run that never got there
    assert slopes(found, ["x"], "share").iloc[0].difference == pytest.approx(3.0)


def test_an_arm_against_a_figure():
    found = pd.DataFrame({"arm": ["a"] * 4 + ["b"], "x": [1.0, 1.1, 0.9, 1.0, 5.0]})
    rows = single(found, ["x"], above=0.5).set_index("arm")
    assert rows.difference["a"] == pytest.approx(0.5) and rows.verdict["a"] == "differs"
    assert rows.runs["b"] == 1 and rows.verdict["b"] == "undecided"


def test_a_study_under_way_has_tables_of_what_there_is(tmp_path):
    nothing = compare(arms(), ["gold_end"], [])
    write_tables(tmp_path, arms(), {"Nothing": nothing, "Means": means(arms(), ["gold_end"])})
    assert "Nothing" not in (tmp_path / "tables.md").read_text()


def test_runs_of_another_setting_are_refused():
    runs = [a_run([0, 1], [0, 1], reset=name) for name in ("none", "active")]
    name = lambda config: config["reset.name"]  # noqa: E731
    assert len(table(runs, name, varied=("reset.",))) == 2
    with pytest.raises(UserError, match=r"reset.name is none in nowhere, active in nowhere"):
        table(runs, name, varied=("algorithm.",))


def test_one_seed_alone_is_shown_without_a_verdict():
    one = arms().query("seed == 0")
    row = compare(one, ["gold_end"], [("active", "none")]).iloc[0]
    assert row.pairs == 1 and row.difference == pytest.approx(0.1) and math.isnan(row.p) and row.verdict == "undecided"


def test_tables_read_as_markdown(tmp_path):
    write_tables(tmp_path, arms(), {"Means": means(arms(), ["gold_end"])})
    lines = (tmp_path / "tables.md").read_text().splitlines()
    assert lines[0] == "## Means" and lines[2] == "| arm | seeds | gold_end |"
    assert lines[4] == "| active | 3 | 0.4 ± 0.5 |"
    alone = means(arms().query("seed == 0"), ["gold_end"])  # one seed has no interval
    assert as_markdown(alone).splitlines()[2] == "| active | 1 | 0.2 |"
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 7  # raw rows: a heading, six runs
