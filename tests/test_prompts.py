import builtins
import json

import duckdb
import pytest

from src.errors import UserError
from src.prompts import hpd, prompts_from_parquet

STYLES = ("anime", "concept-art", "paintings", "photo")


@pytest.fixture
def benchmark(tmp_path):
    """HPDv2's layout: a list of strings for each style."""
    (tmp_path / "benchmark").mkdir()
    for style in STYLES:
        prompts = [f"{style} {k}" for k in range(8)] + [f"{style} 0"]
        (tmp_path / "benchmark" / f"{style}.json").write_text(json.dumps(prompts))
    return tmp_path


@pytest.fixture
def parquet(tmp_path):
    rows = ", ".join(f"({k}, 'prompt {k % 6}', 'url')" for k in range(12))
    duckdb.sql(f"select * from (values {rows}, (12, null, '')) t(id, caption, url)").write_parquet(
        str(tmp_path / "train.parquet")
    )
    return tmp_path / "train.parquet"


def test_hpd_of_one_style_and_of_all(benchmark):
    sets = hpd(str(benchmark), held_out=2)
    assert sets.train == [f"photo {k}" for k in range(6)]  # one was there twice
    assert sets.held_out == ["photo 6", "photo 7"]
    everything = hpd(str(benchmark), "all", held_out=0)
    assert len(everything.train) == 32 and everything.held_out == []
    some = hpd(str(benchmark), "all", held_out=4, limit=8)
    assert [sorted({prompt.split()[0] for prompt in part}) for part in (some.train, some.held_out)] == [
        ["anime", "concept-art", "paintings", "photo"]
    ] * 2
    assert hpd(str(benchmark / "benchmark" / "anime.json"), held_out=1, limit=2).train == ["anime 0", "anime 1"]


def test_parquet_reads_one_column_once_each(parquet):
    sets = prompts_from_parquet(str(parquet), held_out=2)
    assert sets.train == ["prompt 0", "prompt 1", "prompt 2", "prompt 3"]
    assert sets.held_out == ["prompt 4", "prompt 5"]
    assert prompts_from_parquet(str(parquet.parent), "train.parquet", held_out=0, limit=3).train[-1] == "prompt 2"


def test_what_cannot_be_read_is_told_in_one_sentence(benchmark, parquet):
    (benchmark / "dict.json").write_text("{}")
    (benchmark / "text.json").write_text("no json")
    (benchmark / "text.parquet").write_text("no parquet")
    for make, message in (
        (lambda: hpd(str(benchmark / "dict.json")), "a list of strings"),
        (lambda: hpd(str(benchmark / "text.json")), "no readable JSON"),
        (lambda: hpd("/nowhere/at/all"), "no such folder"),
        (lambda: hpd(str(benchmark), held_out=8), "leave none of the 8 prompts"),
        (lambda: prompts_from_parquet(str(parquet), column="prompt"), "choose from id, caption, url"),
        (lambda: prompts_from_parquet(str(benchmark / "text.parquet")), "no readable parquet file"),
    ):
        with pytest.raises(UserError, match=message) as told:
            make()
        assert "\n" not in str(told.value)


def test_without_duckdb_it_says_what_to_install(parquet, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "duckdb":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install \"overopt\[parquet\]\""):
        prompts_from_parquet(str(parquet))
