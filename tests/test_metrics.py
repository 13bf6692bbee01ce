import math

import numpy as np
import pytest
import torch
from scipy import stats

from src.callbacks.evaluation import EvaluationSet, spread
from src.callbacks.gallery import picture_grid
from src.errors import UserError
from src.loggers.jsonl import JsonlLogger
from src.metrics.glossary import lookup
from src.metrics.intervals import area_under, bootstrap_mean, spread_within, t_quantile
from src.metrics.training import RatioStatistics, critic_metrics, explained_variance, neuron_metrics
from src.prompts import PromptBatches
from src.seeding import seed_of
from src.types import Credit


def test_bootstrap_weighs_prompts_not_samples():
    values, units = np.array([1.0, 1.0, 1.0, 5.0]), ["a", "a", "a", "b"]
    assert bootstrap_mean(values, units).mean == 3.0


def test_bootstrap_interval_covers_as_the_normal_one_does():
    rng = np.random.default_rng(1)
    values = rng.normal(size=400)
    interval = bootstrap_mean(values, [str(k) for k in range(400)])
    half = 1.96 * values.std() / 20
    assert interval.low == pytest.approx(values.mean() - half, abs=0.015)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.015)


def test_bootstrap_of_one_unit_has_no_width():
    interval = bootstrap_mean(np.array([1.0, 3.0]), ["a", "a"])
    assert (interval.low, interval.mean, interval.high) == (2, 2, 2)


def test_explained_variance_by_hand():
    returns = torch.tensor([1.0, -1.0, 1.0, -1.0])
    assert explained_variance(returns, returns) == 1
    assert explained_variance(returns / 2, returns) == pytest.approx(0.75)
    assert explained_variance(torch.zeros(4), returns) == 0
    assert explained_variance(-returns, returns) == -3
    assert explained_variance(torch.zeros(4), torch.ones(4)) == 0


def test_ratio_statistics_by_hand():
    statistics = RatioStatistics(2, torch.device("cpu"))
    statistics.update(torch.tensor([0, 0]), torch.tensor([1.0001, 0.9999]), torch.tensor([1.0, 0.0]))
    statistics.update(torch.tensor([1]), torch.tensor([1.0003]), torch.tensor([0.0]))
    metrics = statistics.metrics()
    assert metrics["policy/ratio_mean"] == pytest.approx(1.0001, abs=1e-7)
    assert metrics["policy/ratio_mean/step_0"] == pytest.approx(1, abs=1e-7)
    assert metrics["policy/ratio_std/step_0"] == pytest.approx(1e-4, rel=1e-2)
    assert metrics["policy/ratio_std"] == pytest.approx((8 / 3) ** 0.5 * 1e-4, rel=1e-2)  # of +1, -1, +3
    assert metrics["policy/ratio_std/step_1"] == 0
    assert metrics["policy/clip_fraction"] == pytest.approx(1 / 3)
    assert (metrics["policy/clip_fraction/step_0"], metrics["policy/clip_fraction/step_1"]) == (0.5, 0)


def test_a_step_that_no_update_saw_has_no_ratios():
    statistics = RatioStatistics(2, torch.device("cpu"))
    statistics.update(torch.tensor([1]), torch.tensor([1.0003]), torch.tensor([0.0]))
    metrics = statistics.metrics()
    assert all(math.isfinite(value) for value in metrics.values())
    assert {key for key in metrics if key.endswith(("step_0", "step_1"))} == {
        f"policy/{name}/step_1" for name in ("ratio_mean", "ratio_std", "clip_fraction")
    }


def test_explained_variance_by_step():
    returns = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    metrics = critic_metrics(Credit(returns, returns, torch.tensor([[1.0, 0.5], [-1.0, -0.5]])))
    assert metrics["critic/explained_variance/step_0"] == 1
    assert metrics["critic/explained_variance/step_1"] == pytest.approx(0.75)


def test_dormant_shares_by_hand():
    scores = [torch.tensor([0.0, 0.02, 0.5, 3.48]), torch.tensor([0.1, 1.9])]
    gradients = [torch.tensor([0.0, 0.0, 0.5, 3.5]), torch.tensor([0.0, 2.0])]
    found = neuron_metrics({"activation": scores, "gradient": gradients, "few_states": scores})
    by_activation = {"dormant_0": 1 / 6, "dormant_0.025": 2 / 6, "dormant_0.1": 3 / 6}
    assert found == pytest.approx(
        {f"neurons/{prefix}{key}": value for key, value in by_activation.items() for prefix in ("", "few_states_")}
        | dict.fromkeys(("neurons/gradient_dormant_0", "neurons/gradient_dormant_0.025"), 3 / 6)
        | {"neurons/gradient_dormant_0.1": 3 / 6}
    )


def test_gain_and_win_rate_by_hand():
    part = EvaluationSet("eval", ["a", "b"], [0, 1])
    part.compare({"hps": torch.tensor([1.0, 3.0])}, "hps")  # sd 1, of one sample a prompt
    out = part.compare({"hps": torch.tensor([1.0, 4.0])}, "hps")
    assert out["eval/hps/gain"] == pytest.approx(0.5)
    assert out["eval/hps/win_rate"] == pytest.approx(0.75)  # one tie, one win
    assert out["eval/hps/mean"] == 2.5 and out["eval/hps/std"] == 1.5
    assert 0 <= out["eval/hps/gain_low"] <= 0.5 <= out["eval/hps/gain_high"] <= 1


def test_evaluation_prompts_are_spread_over_the_set():
    letters = list("abcdefg")
    assert spread(letters, 3) == ["a", "c", "e"] and spread(letters, 1) == ["a"]
    assert spread(letters, None) == spread(letters, 9) == letters


def test_base_sd_leaves_out_what_lies_between_prompts():
    values, units = np.array([1.0, 3.0, 101.0, 107.0]), ["a", "a", "b", "b"]
    assert spread_within(values, units) == pytest.approx(10**0.5)  # (1 + 1 + 9 + 9) / 2
    part, base = EvaluationSet("eval", ["a", "b", "a", "b"], [0, 1, 2, 3]), torch.tensor([1.0, 101.0, 3.0, 107.0])
    part.compare({"hps": base}, "hps")
    out = part.compare({"hps": base + 10**0.5}, "hps")
    assert out["eval/hps/gain"] == pytest.approx(1.0)
    assert out["eval/hps/base_sd"] == pytest.approx(10**0.5)


def test_prompts_with_one_picture_have_the_base_sd_of_those_with_more():
    eval_set = EvaluationSet("eval", ["a", "b", "a", "b"], [0, 1, 2, 3])
    held_out = EvaluationSet("held_out", ["c", "d"], [0, 1], lender=eval_set)
    for up in (0, 10**0.5):
        scores = {"hps": torch.tensor([1.0, 101.0, 3.0, 107.0]) + up}
        eval_set.compare(scores, "hps")
        out = held_out.compare({"hps": torch.tensor([-50.0, 50.0]) + up}, "hps")
    assert out["held_out/hps/base_sd"] == pytest.approx(10**0.5) and out["held_out/hps/gain"] == pytest.approx(1.0)


def test_below_peak_and_gap_follow_the_gains():
    part, base = EvaluationSet("held_out", ["a", "b"], [0, 1]), torch.tensor([-1.0, 1.0])
    rows = [part.compare({"hps": base + up, "gold": base + true}, "hps") for up, true in ((0, 0), (1, 0.5), (2, -0.25))]
    assert [row["held_out/gold/below_peak"] for row in rows] == pytest.approx([0, 0, 0.75])
    assert [row["held_out/gold/gap"] for row in rows] == pytest.approx([0, 0.5, 2.25])
    assert [row["held_out/hps/below_peak"] for row in rows] == pytest.approx([0, 0, 0])


def test_unknown_keys_are_refused():
    assert lookup("eval/pick_score/gain").unit == "base sd"
    with pytest.raises(KeyError, match="glossary"):
        lookup("eval/hps/gian")


def test_metrics_file_forgets_what_will_be_repeated(tmp_path):
    logger = JsonlLogger(tmp_path / "metrics.jsonl")
    for iteration in range(4):
        logger.log_metrics({"iteration": iteration, "x": iteration / 3})
    with logger.path.open("a") as file:
        file.write('{"iteration": 4, "x"')  # cut short by a kill
    logger.forget_after(2)
    assert logger.path.read_text().splitlines() == [
        '{"iteration": 0, "x": 0.0}',
        '{"iteration": 1, "x": 0.3333333333333333}',
        '{"iteration": 2, "x": 0.6666666666666666}',
    ]


def test_prompt_batches_are_a_function_of_seed_and_iteration():
    make = lambda seed, start=0: PromptBatches(["a", "b", "c"], 8, 2, seed, start)  # noqa: E731
    first = [batch for batch, _ in zip(make(0), range(5), strict=False)]
    assert [batch for batch, _ in zip(make(0, start=3), range(2), strict=False)] == first[3:]
    assert first != [batch for batch, _ in zip(make(1), range(5), strict=False)]
    for batch in first:
        assert len(batch) == 8 and batch[::2] == batch[1::2]  # each prompt twice
        assert set(batch) == {"a", "b", "c"}  # four draws see all three prompts


@pytest.mark.parametrize(("prompts", "samples", "message"), [([], 4, "empty"), (["a"], 5, "not a multiple")])
def test_bad_prompt_sets_are_refused(prompts, samples, message):
    with pytest.raises(UserError, match=message):
        PromptBatches(prompts, samples, 2, seed=0)


def test_seeds_do_not_collide():
    keys = [(0,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (0, 0, 1)]
    assert len({seed_of(*k) for k in keys}) == len(keys)
    assert seed_of(3, 4) == seed_of(3, 4)


def test_area_by_hand_and_quantiles_of_t():
    assert area_under([(0.0, 0.0), (2.0, 1.0), (1.0, 1.0)]) == pytest.approx(1.5)  # taken in the order of x
    for freedom in (1, 2, 3, 4, 5, 9, 30):
        assert t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=2e-3)


def test_a_reward_in_which_the_base_does_not_differ_has_no_gain():
    part = EvaluationSet("eval", ["cat", "cat", "dog", "dog"], [0, 1, 2, 3])
    flat, real = torch.ones(4), torch.tensor([0.0, 1.0, 0.0, 1.0])
    part.compare({"top1": flat, "hps": real}, "hps")
    row = part.compare({"top1": torch.tensor([1.0, 1.0, 1.0, 0.0]), "hps": real + 1}, "hps")
    assert row["eval/hps/gain"] == pytest.approx(2**0.5) and row["eval/top1/mean"] == 0.75
    assert not {"eval/top1/gain", "eval/top1/gap", "eval/top1/below_peak"} & row.keys()
    assert "eval/hps/gap" in part.compare({"hps": real}, "hps") and "eval/hps/gap" not in part.compare(
        {"hps": real}, "top1"
    )


def test_grid_has_a_cell_for_every_picture():
    grid = picture_grid(torch.rand(10, 3, 16, 16), ["x"] * 10, columns=4, size=32)
    assert grid.size == (128, 3 * (32 + 14))
