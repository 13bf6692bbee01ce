"""The overoptimization watch: when it speaks, what it keeps, and that it looks at no judge."""

import json
import math
from types import SimpleNamespace

import lightning
import pytest

from src.callbacks.evaluation import CrossRewardEvaluation
from src.callbacks.watch import OveroptimizationWatch
from src.errors import UserError
from src.learner import Learner
from src.metrics.watching import alarm_index, every_reward_fell, is_unsound, kept_index, signal_of

ROW = {
    "held_out/hps/gain": 0.4,
    "held_out/pickscore/gain": 0.1,
    "held_out/aesthetic/gain": -0.2,
    "held_out/gold/gain": 9,
    "eval/hps/gain": 1.0,
    "eval/pickscore/gain": 0.5,
    "eval/aesthetic/gain": 0.1,
    "pictures/vendi": 1.5,
    "pictures/saturation": 0.2,
    "kl/sqrt": 30.0,
}
REWARDS = ["hps", "pickscore", "aesthetic"]


@pytest.mark.parametrize(
    ("signal", "expected"),
    [
        ("trained", 0.4),
        ("others", -0.05),
        ("all", 0.1),
        ("carry_over", -0.6),
        ("agreement", -0.7),
        ("diversity", math.log(1.5)),
        ("nearness", -30),
        ("plainness", -0.2),
    ],
)
def test_signals_by_hand(signal, expected):
    assert signal_of(ROW, "hps", REWARDS, signal) == pytest.approx(expected)


def test_without_held_out_prompts_there_is_no_signal():
    assert signal_of({"eval/hps/gain": 1.0}, "hps", REWARDS, "trained") is None
    assert signal_of(ROW, "hps", ["hps"], "agreement") is None and signal_of(ROW, "hps", ["hps"], "others") is None


@pytest.mark.parametrize(
    ("signals", "patience", "peak", "last"),
    [
        ([0.0, 0.3, 0.25, 0.1, 0.3], 1, 1, 2),  # the alarm is at 3
        ([0.0, 0.3, 0.15, 0.25, 0.15, 0.15], 2, 1, 3),  # at 5; what is 0.15 below the peak is out
        ([0.0, -0.05, -0.09, -0.2], 1, 0, 2),  # falls from the start
        ([0.0, 0.1, 0.2], 1, 2, 2),
    ],
)
def test_what_is_kept_by_hand(signals, patience, peak, last):
    assert kept_index(signals, 0.1, patience, "peak") == peak
    assert kept_index(signals, 0.1, patience, "last") == last
    assert kept_index([], 0.1, patience, "last") is None


@pytest.mark.parametrize(
    ("signals", "patience", "expected"),
    [
        ([0.0, 0.2, 0.3, 0.25, 0.1], 1, 4),  # 0.05 below the peak is within the margin of 0.1, 0.2 is not
        ([0.0, 0.2, 0.3, 0.1, 0.25, 0.1, 0.1], 2, 6),  # twice in a row
        ([0.0, 0.1, 0.2], 1, None),
        ([0.0, -0.2], 1, 1),  # the base was the best
        ([], 1, None),
    ],
)
def test_alarms_by_hand(signals, patience, expected):
    assert alarm_index(signals, margin=0.1, patience=patience) == expected


class Module(Learner):
    """What the watch asks of a finetuner."""

    def __init__(self):
        super().__init__()
        self.reward_name, self.reward_members, self.iteration, self.rows = "hps", ["pickscore"], 0, []
        self.policy = SimpleNamespace(
            save=lambda folder, averaged: (folder / "weights").write_text(str(self.iteration))
        )

    def record(self, kind, metrics):
        self.rows.append({"kind": kind} | metrics)


def follow(tmp_path, gains, more=None, trained="hps", **options):
    """A watch shown these held-out gains, one an evaluation every 64 queries, and `more` of those by number."""
    evaluation = object.__new__(CrossRewardEvaluation)
    options = {"rewards": ["hps"], "signal": "trained", "margin": 0.1, "keep": "peak"} | options
    watch = OveroptimizationWatch(str(tmp_path), **options)
    options_of_trainer = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(callbacks=[evaluation, watch], accelerator="cpu", **options_of_trainer)
    module, stopped = Module(), None
    module.reward_name = trained
    for k, gain in enumerate(gains):
        row = {"held_out/hps/gain": gain, "held_out/aesthetic/gain": gain, "held_out/pickscore/gain": 9.0}
        row |= (more or {}).get(k, {})
        evaluation.history, module.iteration = [row | {"reward_queries": 64 * k, "iteration": k}], k
        watch.on_train_batch_end(trainer, module, None, None, k)
        watch.on_train_batch_end(trainer, module, None, None, k)  # iterations without an evaluation change nothing
        stopped = k if trainer.should_stop and stopped is None else stopped
    return watch, module, stopped


def test_it_tells_once_and_keeps_the_weights_of_the_peak(tmp_path, capsys):
    watch, module, stopped = follow(tmp_path, [0.0, 0.3, 0.1, 0.0])
    assert (watch.alarm, watch.best, stopped) == (128, 64, None)
    assert (tmp_path / "best/weights").read_text() == "1"
    assert json.loads((tmp_path / "best/at.json").read_text())["reward_queries"] == 64
    assert [row["watch/alarm"] for row in module.rows] == [0, 0, 1, 1]
    assert module.rows[3]["watch/below_peak"] == pytest.approx(0.3)
    assert capsys.readouterr().out.count("alarm after 128 reward queries") == 1


def test_it_can_keep_the_last_weights_within_the_margin(tmp_path):
    watch = follow(tmp_path, [0.0, 0.3, 0.25, 0.1, 0.4], keep="last")[0]
    assert (watch.alarm, watch.best) == (192, 128)
    assert (tmp_path / "best/weights").read_text() == "2"


def test_what_the_trained_reward_is_made_of_is_no_other_reward(tmp_path):
    assert follow(tmp_path, [0.0, 0.3], rewards=["hps", "pickscore", "aesthetic"], signal="all")[0].signals == [
        0.0,
        0.3,
    ]


def test_it_can_stop_the_run(tmp_path):
    assert follow(tmp_path, [0.0, 0.3, 0.1, 0.0], action="stop")[2] == 2


def test_a_restored_watch_goes_on(tmp_path):
    watch = follow(tmp_path, [0.0, 0.3])[0]
    again = OveroptimizationWatch(str(tmp_path), ["hps"], signal="trained", margin=0.1, keep="peak")
    again.load_state_dict(watch.state_dict())
    assert (again.best, again.alarm) == (64, None)
    assert "no alarm" in again.sentence() and "64" in again.sentence()


@pytest.mark.parametrize("options", [{"margin": -0.1}, {"patience": 0}, {"signal": "others"}, {"signal": "agreement"}])
def test_wrong_options_are_told(tmp_path, options):
    with pytest.raises(UserError, match="watch"):
        OveroptimizationWatch(
            str(tmp_path), ["hps"], **({"signal": "trained", "margin": 0.1, "keep": "peak"} | options)
        )


# ------------------------------------------------------------------------------------------------------ joint collapse

DOWN = {f"eval/{name}/{key}": -2.0 for name in REWARDS for key in ("gain", "gain_high")}
MIXED = DOWN | {"eval/aesthetic/gain_high": 0.1}  # its interval reaches above the base


@pytest.mark.parametrize(
    ("row", "fell"), [({}, False), (DOWN, True), (MIXED, False), (DOWN | {"eval/gold/gain_high": 3.0}, True)]
)
def test_a_collapse_is_of_every_reward_beyond_its_interval(row, fell):
    assert every_reward_fell(row, REWARDS) is fell  # whatever a judge says


@pytest.mark.parametrize(
    ("signals", "collapsed", "peak", "last"),
    [
        ([0.0, 0.3, 0.5], [1, 2], 0, 0),
        ([0.0, 0.3, 0.5, 0.45], [2], 3, 3),
        ([0.0, 0.2, 0.25], [2], 1, 1),
        ([0.0], [], 0, 0),
    ],
)
def test_what_has_collapsed_is_never_kept(signals, collapsed, peak, last):
    assert kept_index(signals, 0.1, 1, "peak", collapsed) == peak
    assert kept_index(signals, 0.1, 1, "last", collapsed) == last


def test_the_base_is_shipped_where_every_reward_fell(tmp_path, capsys):
    """Although what the watch compares agrees better and better."""
    watch = follow(tmp_path, [0.0, 0.3, 0.5], {1: DOWN, 2: DOWN}, rewards=REWARDS)[0]
    said = "alarm after 64 reward queries (joint collapse), every reward fell below the base: ship the base"
    assert (watch.alarm, watch.best, watch.ships_base) == (None, 0, True) and watch.sentence() == said
    assert watch.fell == {"joint_collapse": said}
    assert json.loads((tmp_path / "best/at.json").read_text())["iteration"] == 0  # what is in best/
    assert capsys.readouterr().out.count(f"watch: {said}") == 1
    again = OveroptimizationWatch(str(tmp_path), REWARDS, signal="trained")
    again.load_state_dict(watch.state_dict())
    assert again.seen == watch.seen and again.sentence() == said


def test_weights_whose_own_reward_fell_are_not_kept(tmp_path):
    """The others fall with it, so that what the watch compares agrees; but not all of them, or it were a collapse."""
    watch = follow(tmp_path, [0.0, 0.3, 0.35], {1: MIXED}, rewards=REWARDS, signal="trained", keep="last")[0]
    assert (watch.best, watch.collapse, watch.alarm) == (128, None, None)
    watch = follow(tmp_path, [0.0, 0.3, 0.35], {2: MIXED}, rewards=REWARDS, signal="trained", keep="last")[0]
    assert watch.best == 64 and is_unsound(MIXED, "hps", REWARDS) and not is_unsound(MIXED, "aesthetic", REWARDS)
    again = OveroptimizationWatch(str(tmp_path), REWARDS, signal="trained", margin=0.1)
    again.load_state_dict({"seen": [each[:4] for each in watch.state_dict()["seen"]]})  # of a run begun before
    assert again.best == 128


def test_sound_weights_are_shipped_before_and_after_a_collapse(tmp_path):
    watch, module, stopped = follow(tmp_path, [0.0, 0.3, 0.5], {2: DOWN}, rewards=REWARDS, action="stop")
    assert watch.sentence().startswith("alarm after 128 reward queries (joint collapse), every reward fell below the")
    assert "; weights after 64 kept: " in watch.sentence() and (watch.best, stopped) == (64, 2)
    assert [row["watch/alarm"] for row in module.rows] == [0, 0, 1]
    assert follow(tmp_path, [0.0, 0.3, 0.5], {1: DOWN}, rewards=REWARDS)[0].best == 128
    assert follow(tmp_path, [0.0, 0.3, 0.5], {1: MIXED}, rewards=REWARDS)[0].fell == {}


def test_without_the_trained_reward_it_ships_nothing_but_tells_a_collapse(tmp_path):
    options = {"rewards": REWARDS, "signal": "agreement", "trained": None}
    silent = follow(tmp_path, [0.0, 0.3], **options)[0]
    assert silent.best is None and silent.sentence().endswith("without the trained reward: give train_reward=NAME")
    fallen = follow(tmp_path, [0.0, 0.3, 0.4], {1: DOWN, 2: DOWN}, **options)[0]
    assert fallen.sentence().endswith("every reward fell below the base: ship the base")
    once = follow(tmp_path, [0.0, 0.3, 0.4], {2: DOWN}, **options)[0].sentence()
    assert "(joint collapse), every reward fell below the base; which weights to ship" in once
    assert not (tmp_path / "best").exists()
    assert signal_of(ROW, None, REWARDS, "others") == pytest.approx(0.1) and signal_of(ROW, None, REWARDS, "all")


def test_a_watch_from_before_collapses_were_looked_for_goes_on(tmp_path):
    old = OveroptimizationWatch(str(tmp_path), ["hps"], signal="trained", margin=0.1, keep="peak")
    old.load_state_dict({"queries": [0, 64], "signals": [0.0, 0.3]})
    assert (old.best, old.signals) == (64, [0.0, 0.3])
    assert old._knows({"iteration": 1, "reward_queries": 64}) and not old._knows({"iteration": 2, "reward_queries": 9})
