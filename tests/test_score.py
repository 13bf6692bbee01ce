"""Pictures from anywhere: found, matched with prompts, opened, scored; each fault one sentence that names the file."""

import csv
import json
import shutil
from pathlib import Path

import duckdb
import numpy as np
import pytest
import torch
from PIL import Image

from src.errors import UserError
from src.metrics.joint import joint_rates
from src.pictures import BadPicture, Picture, find_pictures, open_picture, partners, prompt_in, with_prompts
from src.report.scores import Scored, not_taken, overall
from src.score import parser
from src.tasks.score import by_reason, score, score_pictures, tell


def save(file: Path, colour=(255, 0, 0), size=(8, 6), mode="RGB", **options) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).convert(mode).save(file, **options)
    return file


def pixels(file: Path) -> list[int]:
    return open_picture(Picture(file.name, file))[0, 0].tolist()


# ------------------------------------------------------------------------ what is found


def test_files_come_in_natural_order_and_hidden_ones_do_not_count(tmp_path):
    for name in ("10.png", "9.JPG", "b/1.webp", ".cache/2.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [picture.name for picture in find_pictures(tmp_path)] == ["9.JPG", "10.png", "b/1.webp"]


def test_lines_go_to_pictures_in_order_and_their_number_must_match(tmp_path):
    pictures = [Picture(f"{k}.png", tmp_path / f"{k}.png") for k in (1, 2, 10)]
    lines = tmp_path / "prompts.txt"
    lines.write_text("cat\ndog\nbird\n\n")
    assert [p.prompt for p in with_prompts(pictures, lines)[0]] == ["cat", "dog", "bird"]
    lines.write_text("cat\ndog\n")
    with pytest.raises(UserError, match=r"2 prompts for 3 pictures: the first without one is 10\.png"):
        with_prompts(pictures, lines)
    lines.write_text("cat\n\nbird")
    assert [str(fault) for fault in with_prompts(pictures, lines)[1]] == ["2.png: it has no prompt"]


def write_table(file: Path, rows: list[dict]) -> Path:
    if file.suffix == ".json":
        file.write_text(json.dumps(rows))
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        table = file.with_suffix(".csv")
        with table.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        if file.suffix == ".parquet":
            duckdb.read_csv(str(table)).write_parquet(str(file))
            table.unlink()
    return file


@pytest.mark.parametrize("ending", [".csv", ".json", ".jsonl", ".parquet"])
def test_a_table_of_prompts_goes_by_name_in_any_order(tmp_path, ending):
    """A picture with two prompts is scored by both; copies, pictures without a prompt and the reverse are faults."""
    pictures = [Picture(name, tmp_path / name) for name in ("a/1.png", "b/1.png", "c.png", "d.png")]
    rows = [("c.png", "cat, red"), ("b/1.png", "dog"), ("a/1.png", "bird"), ("c.png", "owl"), ("e.png", "bat")]
    table = write_table(tmp_path / f"t{ending}", [{"file_name": n, "text": p} for n, p in [*rows, rows[0]]])
    found, faults = with_prompts(pictures, table)
    expected = [("a/1.png", "bird"), ("b/1.png", "dog"), ("c.png", "cat, red"), ("c.png", "owl")]
    assert [(p.name, p.prompt) for p in found] == expected
    assert [str(fault).replace(str(table), "TABLE") for fault in faults] == [
        "d.png: TABLE has no prompt for it",
        "e.png: TABLE names it, and there is no such picture",
        "c.png: it is listed twice with the prompt 'cat, red'",
    ]


def test_a_table_of_pictures_brings_its_prompts_and_its_folder(tmp_path):
    save(tmp_path / "pictures/1.png")
    table = write_table(
        tmp_path / "t.csv", [{"path": "pictures/1.png", "prompt": "cat"}, {"path": "2.png", "prompt": ""}]
    )
    pictures, faults = with_prompts(find_pictures(table), None)
    assert (pictures[0].source, pictures[0].prompt) == (tmp_path / "pictures/1.png", "cat")
    assert [str(fault) for fault in faults] == ["2.png: it has no prompt"]


def test_pictures_inside_a_parquet_file(tmp_path):
    """As `datasets` stores them: a struct of bytes and path."""
    content = save(tmp_path / "1.png", (0, 255, 0)).read_bytes()
    query = "select {'bytes': ?::blob, 'path': '1.png'} as image, 'cat' as text"
    duckdb.execute(f"create or replace table t as {query}", [content])
    duckdb.table("t").write_parquet(str(tmp_path / "t.parquet"))
    (picture,) = with_prompts(find_pictures(tmp_path / "t.parquet"), None)[0]
    assert picture.prompt == "cat" and open_picture(picture)[0, 0].tolist() == [0, 255, 0]


@pytest.mark.parametrize(
    ("name", "prompt"),
    [("a_red_cat_0012.png", "a red cat"), ("x/dog (3).jpg", "dog"), ("bird.png", "bird"), ("7.png", "")],
)
def test_names_as_prompts(name, prompt):
    assert prompt_in(name) == prompt


def test_partners_have_the_same_name_whatever_folder_and_format():
    ours = [Picture(f"ours/{k}.png", b"", "cat") for k in (1, 2, 3)]
    theirs = [Picture(f"{k}.jpg", b"") for k in (3, 1, 4)]
    pairs, faults = partners(ours, theirs)
    assert [(a.name, b.name, b.prompt) for a, b in pairs] == [
        ("ours/1.png", "1.jpg", "cat"),
        ("ours/3.png", "3.jpg", "cat"),
    ]
    assert [fault.name for fault in faults] == ["ours/2.png", "4.jpg"]
    with pytest.raises(UserError, match=r"1\.jpg and 1\.png could both be the partner"):
        partners(ours, [Picture("1.jpg", b"a"), Picture("1.png", b"b")])


def test_nothing_to_score_is_told(tmp_path):
    with pytest.raises(UserError, match="holds no picture"):
        find_pictures(tmp_path)
    with pytest.raises(UserError, match="give a folder of pictures, or a table"):
        find_pictures(tmp_path / "nowhere")
    with pytest.raises(UserError, match="none of the columns file_name"):
        find_pictures(write_table(tmp_path / "t.csv", [{"where": "1.png"}]))


# ------------------------------------------------------------------------ how it is opened


def test_every_mode_becomes_what_a_viewer_shows(tmp_path):
    assert pixels(save(tmp_path / "rgb.png")) == [255, 0, 0]
    assert pixels(save(tmp_path / "grey.png", (90, 90, 90), mode="L")) == [90, 90, 90]
    assert pixels(save(tmp_path / "one_bit.png", (255, 255, 255), mode="1")) == [255, 255, 255]
    cmyk = save(tmp_path / "cmyk.jpg", (0, 0, 255), mode="CMYK", quality=100)
    assert pixels(cmyk) == pytest.approx([0, 0, 255], abs=3)
    half = Image.new("RGBA", (8, 6), (0, 0, 0, 51))  # a fifth of black on white
    half.save(tmp_path / "rgba.png")
    assert pixels(tmp_path / "rgba.png") == [204, 204, 204]
    palette = Image.new("P", (8, 6), 1)
    palette.putpalette([0, 0, 0, 0, 200, 0])
    palette.save(tmp_path / "palette.png")
    assert pixels(tmp_path / "palette.png") == [0, 200, 0]
    palette.save(tmp_path / "clear.png", transparency=1)
    assert pixels(tmp_path / "clear.png") == [255, 255, 255]


def test_sixteen_bits_keep_their_scale(tmp_path):
    Image.fromarray(np.full((6, 8), 40000, np.uint16)).save(tmp_path / "deep.png")
    found = open_picture(Picture("deep.png", tmp_path / "deep.png"))
    assert found.dtype == np.uint16 and found[0, 0].tolist() == [40000] * 3


def test_exif_turns_a_picture_upright(tmp_path):
    turned = Image.new("RGB", (8, 6), "white")
    turned.paste("black", (0, 0, 4, 6))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise: left becomes up
    turned.save(tmp_path / "turned.jpg", exif=exif, quality=100)
    found = open_picture(Picture("turned.jpg", tmp_path / "turned.jpg"))
    assert found.shape == (8, 6, 3) and found[0].max() < 30 and found[-1].min() > 225


def test_what_is_no_sound_picture_is_named_with_its_fault(tmp_path):
    whole = save(tmp_path / "whole.jpg", size=(200, 200)).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not a picture")
    Image.new("F", (8, 6)).save(tmp_path / "float.tiff")
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    told = {
        "cut.jpg": "cut.jpg: it cannot be opened .*truncated",
        "empty.png": "empty.png: it is no picture",
        "text.png": "text.png: it is no picture",
        "float.tiff": "float.tiff: its values have no known white",
        "moving.gif": "moving.gif: it holds 2 pictures",
        "nowhere.png": "nowhere.png: no such file",
    }
    for name, message in told.items():
        with pytest.raises(BadPicture, match=message):
            open_picture(Picture(name, tmp_path / name))


# ------------------------------------------------------------------------ how it scores


COLOURS = {
    "cat_1.png": (250, 200, 40),
    "cat_2.png": (90, 60, 30),
    "dog_1.png": (20, 120, 220),
    "dog_2.png": (230, 30, 60),
}


@pytest.fixture
def folder(tmp_path) -> Path:
    """Four pictures of two sizes."""
    for k, (name, colour) in enumerate(COLOURS.items()):
        save(tmp_path / "pictures" / name, colour, size=(64, 64) if k % 2 else (96, 80))
    return tmp_path / "pictures"


def command(*arguments):
    return parser().parse_intermixed_args([str(argument) for argument in arguments])


def test_scores_are_the_rewards_own_whatever_the_order_and_the_company(folder, tmp_path):
    found = score(command(folder, "--rewards", "hps,gold"))
    assert [p.name for p in found.pictures] == list(COLOURS) and found.rewards == ["hps"]
    table = write_table(tmp_path / "t.csv", [{"path": f"pictures/{n}", "prompt": n[:3]} for n in reversed(COLOURS)])
    turned = score(command(table, "--rewards", "gold,hps"))
    alone = score_pictures(found.pictures[:1], {"hps": rewards_of("hps")}, False)[0]["hps"]
    torch.testing.assert_close(found.scores["hps"], turned.scores["hps"].flip(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.scores["gold"], turned.scores["gold"].flip(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(alone, found.scores["hps"][:1], atol=1e-5, rtol=0)
    images = torch.tensor(COLOURS["cat_2.png"]).float().div(255).view(1, 3, 1, 1).expand(1, 3, 64, 64)
    torch.testing.assert_close(rewards_of("hps").score(images, ["cat"]), found.scores["hps"][1:2], atol=1e-5, rtol=0)


def rewards_of(name: str):
    from src.tasks.score import suite_rewards

    return suite_rewards("mini", [], name)[0][name]


def test_a_bad_file_among_many_stops_or_is_passed_over(folder, capsys):
    whole = (folder / "dog_1.png").read_bytes()
    (folder / "dog_1.png").write_bytes(whole[: len(whole) // 2])
    (folder / "bat_1.png").write_text("")
    with pytest.raises(UserError, match=r"bat_1\.png: it is no picture \(and 1 more, such as dog_1\.png\)"):
        score(command(folder, "--rewards", "aesthetic"))
    found = score(command(folder, "--rewards", "aesthetic", "--skip-bad"))
    assert [p.name for p in found.pictures] == ["cat_1.png", "cat_2.png", "dog_2.png"]
    told = capsys.readouterr().out
    assert "passed over, 2 in all:\n  1, it is no picture: bat_1.png\n  1, it cannot be opened: dog_1.png\n" in told
    for name in ("cat_1.png", "cat_2.png", "dog_2.png"):
        (folder / name).write_text("")
    with pytest.raises(UserError, match="not one of its pictures can be scored"):
        score(command(folder, "--rewards", "aesthetic", "--skip-bad"))


def test_a_judge_leaves_prompts_that_it_does_not_know_empty(folder, tmp_path, capsys):
    (folder / "dog_1.png").rename(folder / "a_castle_1.png")
    found = score(command(folder, "--rewards", "aesthetic,gold"))
    assert found.scores["gold"].isnan().tolist() == [True, False, False, False]
    tell(found, tmp_path / "out.csv")
    assert "gold does not know the prompts of 1 of 4 pictures" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert rows[0]["gold"] == "" and rows[0]["prompt"] == "a castle"
    assert float(rows[1]["gold"]) == pytest.approx(found.scores["gold"][1].item())


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_two_folders_are_compared_pair_by_pair(folder, tmp_path, ending, capsys):
    shutil.copytree(folder, tmp_path / "base")
    save(tmp_path / "base/cat_1.png", (0, 0, 0))
    found = score(command(folder, "--against", tmp_path / "base", "--rewards", "aesthetic,hps"))
    gains, base = found.gains()["hps"], found.base["hps"]
    assert gains[1:].tolist() == [0, 0, 0] and gains[0] != 0
    cats, dogs = base[:2].double(), base[2:].double()
    sd = (((cats - cats.mean()) ** 2).sum() + ((dogs - dogs.mean()) ** 2).sum()).div(2).sqrt()
    assert gains[0].item() == pytest.approx(((found.scores["hps"] - base)[0] / sd).item(), rel=1e-5)
    assert found.joint() == joint_rates(found.scores, found.base)
    tell(found, tmp_path / f"out{ending}")
    told = capsys.readouterr().out
    assert "gain [sd of --against]" in told and "better under all of aesthetic, hps" in told
    read = duckdb.read_csv if ending == ".csv" else duckdb.read_parquet
    by_prompt = read(str(tmp_path / f"out_by_prompt{ending}"))
    rows = [dict(zip(by_prompt.columns, row, strict=True)) for row in by_prompt.fetchall()]
    assert [row["prompt"] for row in rows] == ["cat", "dog"] and rows[0]["pictures"] == 2
    assert rows[0]["hps_gain"] == pytest.approx(gains[0].item() / 2, rel=1e-5)


def test_joint_rates_by_hand():
    base = {"a": torch.zeros(4), "b": torch.zeros(4)}
    now = {"a": torch.tensor([1.0, -1.0, 1.0, 1.0]), "b": torch.tensor([1.0, -1.0, 0.0, -1.0])}
    assert joint_rates(now, base) == {"joint_domination": 0.25, "joint_collapse": 0.25}
    assert joint_rates({}, {}) == {}


def test_wrong_options_are_told_before_anything_is_scored(folder, tmp_path):
    with pytest.raises(UserError, match=r"ends in \.csv or \.parquet"):
        score(command(folder, "--out", tmp_path / "x.txt"))
    with pytest.raises(UserError, match="would overwrite what is read"):
        score(command(folder, "--prompts", tmp_path / "p.csv", "--out", tmp_path / "p.csv"))
    with pytest.raises(UserError, match="'hpz' is none of suite=mini's: hps"):
        score(command(folder, "--rewards", "hpz"))


def test_what_is_passed_over_is_told_by_reason():
    faults = [BadPicture(f"{k}.png", f"it cannot be opened (cut at {k})") for k in range(7)] + [BadPicture("a", "no")]
    assert by_reason([faults[-1], *faults[:-1]]) == [
        "7, it cannot be opened: 0.png, 1.png, 2.png, 3.png, 4.png, ...",
        "1, no: a",
    ]


@pytest.mark.parametrize(
    ("prompts", "told"),
    [
        (["cat", "dog", "fox"], ["each prompt has one picture: the sd, and gains in it, are of the spread between"]),
        (["cat", "cat", "fox"], ["the sd within prompts, and gains in it, rest on 1 pictures beyond the first"]),
        (["cat", "dog"] * 6, []),
    ],
)
def test_what_the_sd_rests_on_is_told(prompts, told):
    pictures = [Picture(f"{k}.png", b"", prompt) for k, prompt in enumerate(prompts)]
    found = not_taken(Scored(pictures, {"hps": torch.arange(float(len(prompts)))}, ["hps"]))
    assert [sentence[: len(start)] for sentence, start in zip(found, told, strict=True)] == told


def test_one_prompt_has_no_interval():
    """Intervals are over prompts: of one it would have no width."""
    pictures = [Picture(f"{k}.png", b"", "cat") for k in range(3)]
    now, base = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 1.0, 0.5])
    alone = Scored(pictures, {"hps": now}, ["hps"])
    against = Scored(pictures, {"hps": now}, ["hps"], pictures, {"hps": base})
    for found, place in ((alone, 3), (against, 5)):
        assert [next(iter(column.cells)) for column in overall(found).columns][place] == "-"
        assert not_taken(found)[0] == "no interval: intervals are over prompts, and there is one."
    others = [Picture("3.png", b"", "dog"), *pictures[1:]]
    assert ".." in next(iter(overall(Scored(others, {"hps": now}, ["hps"])).columns[3].cells))
