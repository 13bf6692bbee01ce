"""What a report and a command say of checkpoints and degrees that were evaluated side by side."""

import csv
import json
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from rich.console import Console

from src.config import check
from src.errors import UserError
from src.overrides import why
from src.report.compare import arms_of
from src.report.headline import headline
from src.report.page import write_report
from src.report.runs import Run, find_runs
from src.report.series import series_csv, series_table, verdict, weighed
from src.report.watching import Shipment, shipment
from tests.conftest import composed

RISING = {"hps": [0.0, 0.5, 1.5], "aesthetic": [0.0, 0.4, 0.3], "gold": [0.0, 0.1, -0.4]}
FALLING = {"hps": [0.0, -1.0, -2.0], "aesthetic": [0.0, -1.5, -2.0], "gold": [0.0, -1.0, -3.0]}


def series(folder: Path, gains: dict, trained: str | None = "hps", places=None, watched=True, **config) -> Run:
    """An evaluation of weights with these gains, the base's first; `places` are more columns of its rows."""
    folder.mkdir(parents=True)
    suite = {"rewards": {"hps": {}, "aesthetic": {}}, "judges": {"gold": {}}}
    watch = {"signal": "agreement", "margin": 0.5, "patience": 1, "keep": "last"}
    stored = {"task": "evaluate", "name": "evaluate", "train_reward": trained, "suite": suite, "iterations": 1}
    stored |= {"callbacks": {"watch": watch} if watched else {}, "weights": "out/checkpoint-*"} | config
    OmegaConf.save(OmegaConf.create(stored), folder / "config.yaml")
    rows = []
    for k in range(len(gains["hps"])):
        row = {"kind": "evaluation", "iteration": k, "reward_queries": 10 * k, "policy/checkpoint": 10 * k}
        row |= {"kl/trajectory": 100.0 * k, "kl/sqrt": 10 * k**0.5, "pictures/vendi": 3.0 - k}
        for name, values in gains.items():
            half = 0.1 * bool(k)
            measured = {"gain": values[k], "gain_low": values[k] - half, "gain_high": values[k] + half}
            measured |= {"below_peak": 0, "win_rate": 0.5}
            row |= {f"eval/{name}/{key}": value for key, value in measured.items()}
        rows.append(row | (places[k] if places else {}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return find_runs([str(folder)])[0]


def printed(run: Run) -> str:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123 (nothing is kept)
    console.print(series_table(run))
    return console.export_text()


def test_a_row_for_each_checkpoint_with_the_kept_one_marked(tmp_path):
    run = series(tmp_path / "run", RISING)
    base, middle, last = weighed(run)
    assert (base.name, middle.name, last.name) == ("the base", "checkpoint 10", "checkpoint 20")
    assert (middle.trained, middle.others, middle.judge, middle.kl, middle.diversity) == (0.5, 0.4, 0.1, 100, 2)
    assert [row.kept for row in (base, middle, last)] == [False, True, False]  # agreement: 0, -0.1, -1.2
    lines = [line for line in printed(run).splitlines() if "checkpoint" in line]
    assert "+0.50" in lines[0] and "<- kept" in lines[0] and "+1.50" in lines[1] and "kept" not in lines[1]
    rows = list(csv.DictReader(series_csv(run).splitlines()))
    assert rows[1] == {
        **{"weights": "checkpoint 10", "trained_gain": "0.5", "trained_gain_low": "0.4", "trained_gain_high": "0.6"},
        **{"others_gain": "0.4", "judge_gain": "0.1", "judge_gain_low": "0", "judge_gain_high": "0.2"},
        **{"judge_held_out_gain": "", "judge_held_out_gain_low": "", "judge_held_out_gain_high": ""},
        **{"kl": "100", "vendi": "2", "kept": "1"},
    }
    page = write_report([run], tmp_path / "report.html").read_text()
    assert '<p class="lead">The watch would ship checkpoint 10. By checkpoint 20 the trained' in page
    assert "<td>checkpoint 10</td><td>+0.50 [+0.40, +0.60]</td><td>+0.40</td><td>+0.10 [+0.00, +0.20]</td>" in page
    assert (tmp_path / "report_series.csv").read_text() == series_csv(run)


@pytest.mark.parametrize(
    ("layout", "values", "kept"),
    [("scale", [1.0, 0.5], "scale 0.5"), ("aig", [0.0, 2.0], "p = 2"), ("scale", [0.5, 1.0], "scale 0.5")],
)
def test_degrees_are_looked_at_from_the_base_on(tmp_path, layout, values, kept):
    """In whatever order they were asked for."""
    strong_first = values[0] in (1.0, 0.0)
    gains = {name: [v[0], *(reversed(v[1:]) if strong_first else v[1:])] for name, v in RISING.items()}
    places = [{"policy/scale": 0.0}, *({"policy/scale": 1.0} | {f"policy/{layout}": value} for value in values)]
    run = series(tmp_path / "run", gains, places=places)
    assert run.is_frontier and verdict(run) == f"The watch would ship {kept}."
    assert [row.name for row in weighed(run) if row.kept] == [kept] and kept in printed(run)


def test_the_base_is_shipped_where_every_reward_fell(tmp_path):
    """Although the others fell less than the trained one, and so agree better and better."""
    for name, trained in (("known", "aesthetic"), ("unknown", None)):
        run = series(tmp_path / name, FALLING, trained)
        told = shipment(run)
        assert told is not None and (told.index, told.alarm, told.collapsed) == (0, True, True)
        doubt = "Ship the base: aesthetic is nowhere above the base's: were these weights trained on this suite's "
        assert verdict(run).startswith(doubt if trained else "Every reward fell below the base: ship the base.")
        page = write_report([run], tmp_path / f"{name}.html").read_text()
        assert f'<p class="lead">{verdict(run)} '.replace("'", "&#39;") in page
        assert [row.kept for row in weighed(run)] == [True, False, False]


def test_the_base_is_shipped_where_no_weights_have_more_of_the_reward(tmp_path):
    """Though none is clearly below it."""
    run = series(tmp_path / "run", {"hps": [0.0, 0.05, -0.05], "aesthetic": [0.0, 0.5, 0.4], "gold": [0.0, -0.1, -0.2]})
    assert shipment(run) == Shipment(0, alarm=False) and verdict(run).startswith("Ship the base: hps is nowhere above")
    assert [row.kept for row in weighed(run)] == [True, False, False]


def test_a_training_run_says_so_too_and_nothing_else(tmp_path):
    fallen, risen = (series(tmp_path / str(k), g, task="finetune") for k, g in enumerate((FALLING, RISING)))
    assert verdict(fallen) == "Every reward fell below the base: ship the base." and verdict(risen) == ""


def test_of_what_nobody_knows_nothing_is_called_trained(tmp_path):
    run = series(tmp_path / "run", RISING, trained=None)
    assert shipment(run) is None and verdict(run) == "" and run.rewards == ["hps", "aesthetic", "gold"]
    assert weighed(run)[2].others == 0.9 and "mean of the rewards" in printed(run)
    told = headline(run)
    assert told == (
        "Gains over the base at checkpoint 20, in base sd: hps +1.5, aesthetic +0.3, gold -0.4; what was trained on is "
        "not known (train_reward=)."
    )
    whole = write_report([run], tmp_path / "report.html").read_text()
    page = re.sub(r"<script.*?</script>", "", whole, flags=re.S)
    assert told in page and "(trained)" not in page and "ship" not in page and ">None" not in page.split("<details>")[0]
    with pytest.raises(UserError, match="evaluate them with train_reward=NAME"):
        arms_of([run, series(tmp_path / "other", RISING, seed=1, num_steps=4)], "runs")


def test_an_evaluation_takes_no_reward_for_granted():
    assert check(composed("+experiment=evaluate", "weights=x"))["train_reward"] is None
    assert check(composed("+experiment=evaluate", "weights=x", "train_reward=hps"))["train_reward"] == "hps"
    with pytest.raises(UserError, match="train_reward=None is not a reward of suite=mini"):
        check(composed("+experiment=ddpo_hps", "train_reward=null"))


@pytest.mark.parametrize("given", ["jpeg", "[hps,jpeg]"])
def test_a_reward_that_the_suite_lacks_is_told_how_to_add(given):
    with pytest.raises(UserError, match=r"\+suite\.rewards\.NAME\._target_=MODULE\.CLASS \(docs/guides/reward\.md\)"):
        check(composed("+experiment=evaluate", "weights=x", f"train_reward={given}"))
    with pytest.raises(UserError, match="where it is not known leave train_reward= out"):
        check(composed("+experiment=evaluate", "weights=x", "train_reward=jpeg"))
    assert check(
        composed(
            *("+experiment=evaluate", "weights=x", "train_reward=jpeg"),
            "+suite.rewards.jpeg._target_=src.mini.gold.GoldAnnotator",
            "+suite.rewards.jpeg.path=x",
        )
    )


@pytest.mark.parametrize(
    ("weights", "told"),
    [("lora/animal_v2.safetensors", "animal_v2.safetensors"), (["a/b"], "b"), ("c-*", "checkpoint 10")],
)
def test_weights_alone_are_called_by_their_name(tmp_path, weights, told):
    gains = {name: values[:2] for name, values in RISING.items()}
    run = series(tmp_path / "run", gains, weights=weights)
    assert run.told(1) == f"at {told}" and verdict(run) == f"The watch would ship {told}."
    assert run.told(0) == "at the base"


def test_what_of_a_file_of_prompts_is_meant(tmp_path):
    (tmp_path / "mine.txt").write_text("cat")
    with pytest.raises(Exception) as told:  # Hydra's
        composed(f"prompts={tmp_path}/mine.txt")
    assert (why(told.value) or "").endswith(f"of a file: prompts=file prompts.path={tmp_path}/mine.txt.")
    with pytest.raises(Exception) as told:
        composed("prompts=nothing")
    assert (why(told.value) or "").startswith("there is no conf/prompts/nothing.yaml: choose from file, hpd")
