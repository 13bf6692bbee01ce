import itertools
import json
import math

import numpy as np
import pytest
import torch

from src.metrics.best_of_n import best_of_n, best_of_n_kl
from src.metrics.glossary import lookup
from src.tasks.best_of_n import curve
from tests.conftest import rows_of
from tests.forked import run_forked
from tests.test_resume import kill_at


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_equals_brute_force_on_a_small_pool(n):
    rng = torch.Generator().manual_seed(0)
    proxy, gold = torch.randn(6, generator=rng), torch.randn(6, generator=rng)
    picked = [gold[max(chosen, key=lambda i: proxy[i])] for chosen in itertools.combinations(range(6), n)]
    assert best_of_n(proxy, gold, n) == pytest.approx(torch.stack(picked).double().mean().item(), rel=1e-6)


def test_of_itself_it_rises_to_the_maximum():
    proxy = torch.tensor([3.0, 1.0, 2.0])
    assert [best_of_n(proxy, proxy, n) for n in (1, 2, 3)] == pytest.approx([2.0, 8 / 3, 3.0])


def test_among_equal_proxies_a_coin_decides():
    proxy, gold = torch.zeros(4), torch.tensor([4.0, 0.0, 0.0, 0.0])
    assert [best_of_n(proxy, gold, n) for n in (1, 2, 4)] == pytest.approx([1.0, 1.0, 1.0])
    # 1 is chosen from every pair that has it (3 of 6), else one of the three zeros: (3 x 4 + 3 x 2) / 6
    proxy, gold = torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.tensor([4.0, 0.0, 0.0, 6.0])
    assert best_of_n(proxy, gold, 2) == pytest.approx(3.0)


def test_more_than_the_pool_is_refused():
    with pytest.raises(ValueError, match="best of 4 cannot be estimated from 3"):
        best_of_n(torch.zeros(3), torch.zeros(3), 4)


def test_kl_by_hand():
    assert best_of_n_kl(1) == 0
    assert best_of_n_kl(4) == pytest.approx(math.log(4) - 0.75)


def test_the_curve_equals_brute_force():
    rng = torch.Generator().manual_seed(1)
    scores = {"hps": torch.randn(2, 4, generator=rng), "gold": torch.randn(2, 4, generator=rng)}
    rows = curve(scores, "hps", ["cat", "dog"])
    assert [row["best_of_n/n"] for row in rows] == [1, 2, 4]
    gold = scores["gold"].double()
    sd = ((gold - gold.mean(1, keepdim=True)) ** 2).sum().div(6).sqrt()  # 8 samples, 2 prompts
    for row in rows:
        n, means = int(row["best_of_n/n"]), []
        for p in range(2):
            chosen = itertools.combinations(range(4), n)
            means.append(torch.stack([gold[p, max(c, key=lambda i: scores["hps"][p, i])] for c in chosen]).mean())
        expected = torch.stack(means).sub(gold.mean(1)).div(sd).mean().item()
        assert row["eval/gold/gain"] == pytest.approx(expected, abs=1e-6)
        assert row["kl/trajectory"] == best_of_n_kl(n)
    assert rows[0]["eval/hps/gain"] == pytest.approx(0, abs=1e-6)


OPTIONS = ["+experiment=best_of_n_hps", "+debug=tiny", "logger.mode=offline"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("control") / "run"
    done = run_forked(*OPTIONS, f"run_dir={folder}")
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.mark.slow
def test_killed_it_goes_on_with_its_pool(folder, tmp_path):
    """What has been drawn is not drawn again: a score that is altered in between is kept."""
    killed = tmp_path / "run"
    kill_at(killed, "pool/000002.npz", [*OPTIONS, f"run_dir={killed}"])
    first = dict(np.load(killed / "pool/000000.npz"))
    np.savez(killed / "pool/000000.npz", **first | {"scores/aesthetic": first["scores/aesthetic"] + 1})
    assert run_forked(f"resume={killed}").returncode == 0
    ours, theirs = (dict(np.load(run / "scores.npz")) for run in (killed, folder))
    theirs["aesthetic"][0] += 1
    assert ours.keys() == theirs.keys() and all((ours[name] == theirs[name]).all() for name in theirs)
    assert len(rows_of(killed)) == len(rows_of(folder)) and not (killed / "pool").exists()
    assert "it is finished" in run_forked(f"resume={killed}").stderr


def test_the_command_writes_curve_pictures_and_report(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    assert [row["best_of_n/n"] for row in rows] == [1, 2, 4]
    assert all(lookup(key) for row in rows for key in row)
    gains = [row["eval/hps/gain"] for row in rows]
    assert gains[0] == pytest.approx(0, abs=1e-6) and gains == sorted(gains)  # chosen by hps, hps can but rise
    assert {path.name for path in (folder / "samples").iterdir()} == {"00001.png", "00004.png"}
    assert "Choosing the best of up to 4 base samples" in (folder / "report.html").read_text()
    assert list(folder.glob("wandb/offline-run-*/run-*.wandb"))
