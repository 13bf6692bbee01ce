"""Bars: what moves them, and that there is none where nobody looks."""

from types import SimpleNamespace

import pytest

from src.progress import Bar, advance, track
from tests.test_policy import PROMPTS, SEEDS, make_policy


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # rich's own variable
    monkeypatch.setenv("COLUMNS", "100")


def test_sampling_moves_the_bar_of_pictures(terminal, capsys):
    """The innermost of its name, over all batches, whatever other bars are open."""
    policy = make_policy(sampling_batch=2)
    with Bar("training", 5) as outer:
        outer.update(2, "hps 9.100")
        with Bar("evaluation", len(PROMPTS), of="pictures") as inner:
            policy.sample(PROMPTS, SEEDS)
            assert (inner.done, outer.done) == (len(PROMPTS), 2)
            advance("pictures", 7)
            assert inner.done == len(PROMPTS)
        advance("pictures", 1)  # of nothing that is open
        assert outer.done == 2
    shown = capsys.readouterr().out
    assert "hps 9.100" in shown and "evaluation" in shown and "2/5" in shown
    assert Bar.live is None and not Bar.opened


def test_a_bar_goes_with_its_loop(terminal, capsys):
    assert list(track("abc", "letters")) == ["a", "b", "c"]
    assert "letters" in (shown := capsys.readouterr().out) and "3/3" in shown
    with pytest.raises(ZeroDivisionError):
        for _ in track([1], "nothing"):
            1 / 0  # noqa: B018
    assert Bar.live is None and not Bar.opened


def test_no_bar_without_a_terminal(capsys):
    with Bar("evaluation", 3, of="pictures"):
        advance("pictures")
    assert list(track(range(2), "numbers")) == [0, 1]
    assert capsys.readouterr() == ("", "")


def test_without_a_terminal_a_line_a_minute_says_how_far_it_is(monkeypatch, capsys):
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr("src.progress.time", clock)
    with Bar("evaluation", 1200, of="pictures", done=200):
        for clock.now in (30.0, 61.0, 90.0, 122.0):
            advance("pictures", 100)
    told = ["evaluation: 400 of 1,200  4.1 min left", "evaluation: 600 of 1,200  3.0 min left"]
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines() == told
