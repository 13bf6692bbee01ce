"""Folders and files as real machines have them: links to nowhere, no rights, other encodings, files cut short."""

import ast
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
from hydra.utils import instantiate
from PIL import Image

import src.report.__main__ as report
import src.report.kept
from src.callbacks.gallery import save_png
from src.callbacks.keeping import keep_weights
from src.config import check
from src.errors import UserError, told_in_one_sentence
from src.loggers.jsonl import JsonlLogger
from src.mini.gold import GoldAnnotator, subject
from src.mini.top_one import ClassifierTopOne
from src.prompts import PromptSets, check_prompts, hpd, prompts_from_file
from src.report.page import write_report
from src.report.runs import find_runs
from src.rewards.clip import CLIPReward
from src.runs import folder as run_folder
from src.runs import sweeps
from src.runs.folder import find_run, read_config, stored_config, write_config, write_text
from src.runs.launched import stored_trainer
from src.runs.resuming import now_at
from src.tasks.control import write_arrays
from src.tasks.evaluate import as_in_run, source_run
from src.tasks.finetune import load_checkpoint
from src.tasks.members import queries_of
from src.tasks.train_reward import keep
from tests.conftest import ROOT, TINY, composed, rows_of
from tests.test_finetuner import build
from tests.test_report import make_run
from tests.test_run import run_in_process

NEW = {"run_dir": None, "name": "tdpo", "seed": 0, "task": "finetune"}
WEIGHTS = "src/mini/weights"


@pytest.fixture
def in_time() -> Iterator[None]:
    """An endless loop fails within seconds."""
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it goes on for ever"))
    signal.alarm(20)
    yield
    signal.alarm(0)


@pytest.fixture
def nobody(open_place) -> Iterator[None]:
    """A user whom nothing belongs to, where the tests run as root, whom no right is denied."""
    privileged = os.geteuid() == 0
    if privileged:
        os.seteuid(65534)
    yield
    if privileged:
        os.seteuid(0)


# ------------------------------------------------------------------------------------------------------------ folders


def test_a_link_to_a_disk_that_is_not_mounted_is_told(tmp_path, monkeypatch, in_time):
    link = tmp_path / "runs"
    link.symlink_to("/nowhere/scratch")
    monkeypatch.setattr(run_folder, "RUNS", link)
    said = r"runs cannot be made: .*runs is a link to /nowhere/scratch, which is not there \(a disk that is not mounted"
    with pytest.raises(UserError, match=said):
        run_folder.new_run_dir(NEW)
    for folder in (link, link / "below"):
        run_folder.new_run_dir(NEW | {"run_dir": str(folder)})
        with pytest.raises(UserError, match="is a link to /nowhere/scratch"), run_folder.held(folder):
            pass


def test_a_file_in_the_way_is_told(tmp_path, monkeypatch, in_time):
    (tmp_path / "runs").write_text("")
    monkeypatch.setattr(run_folder, "RUNS", tmp_path / "runs")
    with pytest.raises(UserError, match=r"runs cannot be made: .*runs is a file\."):
        run_folder.new_run_dir(NEW)


@pytest.mark.parametrize("overrides", [["run_dir={}"], ["-m", "seed=0", "hydra.sweep.dir={}"]], ids=["run", "sweep"])
@pytest.mark.parametrize("place", ["link", "file/x", "link/x", "/proc/nowhere", "locked/x", "locked", "x" * 300])
def test_a_folder_that_cannot_be_made_ends_in_one_sentence(overrides, place, open_place, capfd, monkeypatch, request):
    (open_place / "link").symlink_to("/nowhere/scratch")
    (open_place / "file").write_text("")
    (open_place / "locked").mkdir(mode=0o555)
    request.getfixturevalue("nobody")
    overrides = [override.format(open_place / place) for override in overrides]
    code, err = run_in_process(["+experiment=ddpo_hps", *TINY[1:], *overrides], capfd, monkeypatch)
    assert code == 2 and err.startswith("error: ") and len(err.splitlines()) == 1 and str(open_place / place) in err, (
        err
    )


def test_a_report_that_cannot_be_written_where_the_run_is(open_place, capfd, monkeypatch, request):
    run = make_run(open_place / "run", [0.0, 0.1], [0.0, 0.2])
    write_report(find_runs([str(run)]), open_place / "report.html")  # imports what nobody may not read
    run.chmod(0o555)
    request.getfixturevalue("nobody")
    monkeypatch.setattr(sys, "argv", ["report", str(run)])
    with pytest.raises(SystemExit) as ended:
        report.main()
    said = f"error: {run}/report.html cannot be written: Permission denied; name another place by --output=FILE."
    assert ended.value.code == 2 and capfd.readouterr().err.strip() == said


def test_a_run_in_a_folder_without_the_right_to_it_does_not_go_on(open_place, request):
    run = make_run(open_place / "run", [0.0, 0.1], [0.0, 0.2])
    run.chmod(0o555)
    request.getfixturevalue("nobody")
    with pytest.raises(UserError, match="cannot be used: Permission denied"), run_folder.held(run):
        pass


def test_home_is_one_place_whoever_reads_the_path(tmp_path, monkeypatch, capsys):
    """Lightning and the hub expand ~ by themselves, and one run would lie in two folders."""
    monkeypatch.setenv("HOME", str(tmp_path))
    cfg = check(composed("run_dir='~/x'", "prompts=file", "prompts.path='~/p.txt'", "suite.rewards.hps.path='~/hps'"))
    assert cfg["run_dir"] == str(tmp_path / "x") and cfg["suite"]["rewards"]["hps"]["path"] == str(tmp_path / "hps")
    (tmp_path / "p.txt").write_text("cat\n")
    assert prompts_from_file("~/p.txt").train == instantiate(cfg["prompts"]).train == ["cat"]
    make_run(tmp_path / "x", [0.0, 0.1], [0.0, 0.2])
    assert find_run("~/x") == find_run("~/x/checkpoints/last.ckpt") == tmp_path / "x"
    monkeypatch.setattr(sys, "argv", ["report", "~/x", "--output=~/page.html"])
    report.main()
    assert (tmp_path / "page.html").exists()
    monkeypatch.setattr(sys, "argv", ["kept", "keep", "~", "~/kept"])
    src.report.kept.main()
    assert (tmp_path / "kept").is_dir()


def test_a_sweep_below_home(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    command = ["-m", "+experiment=ddpo_hps", *TINY[1:], "resume=last", "hydra.sweep.dir='~/swept'"]
    code, err = run_in_process(command, capfd, monkeypatch)
    assert code == 1 and "resume= is for single runs" in err
    assert list((tmp_path / "swept/jobs").glob("*.json")) and not (ROOT / "~").exists()


def test_what_the_watch_keeps_may_lie_elsewhere(tmp_path):
    """best/ as a link to a larger disk: its target is somebody's, and the next best is not hindered."""
    (tmp_path / "run").mkdir()
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "mine").write_text("precious")
    (tmp_path / "run" / "best").symlink_to(tmp_path / "large")
    for _ in range(2):
        keep_weights(tmp_path / "run/best", build(), reward_queries=4)
    assert json.loads((tmp_path / "run/best/at.json").read_text())["reward_queries"] == 4
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["best"]
    assert (tmp_path / "large" / "mine").read_text() == "precious"


def test_two_processes_may_write_the_same_file(tmp_path):
    """Two calls of a sweep that end at once both write its report."""
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda k: write_text(tmp_path / "report.html", str(k) * 10000), range(400)))
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert len((tmp_path / "report.html").read_text()) >= 10000


# ---------------------------------------------------------------------------------------------------------- encodings


def test_every_text_file_names_its_encoding():
    """In the product's code; what a locale reads is anybody's guess."""
    faults = []
    for path in (
        file for part in ("src", "hydra_plugins", "experiments", "benchmarks") for file in (ROOT / part).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and _reads_or_writes_text(node):
                faults.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not faults


def _reads_or_writes_text(call: ast.Call) -> bool:
    """Whether it opens a file as text without saying how, or takes a command's output so."""
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", None)
    if "encoding" in given or name not in ("open", "read_text", "write_text", "run", "Popen", "check_output"):
        return False
    if name in ("run", "Popen", "check_output"):
        return "text" in given or "universal_newlines" in given
    if isinstance(call.func, ast.Name):
        return name == "open"
    if name != "open":
        return len(call.args) < {"read_text": 1, "write_text": 2}[name]
    if isinstance(call.func.value, ast.Name) and call.func.value.id in ("Image", "tarfile", "os"):
        return False
    modes = [*call.args, *([given["mode"]] if "mode" in given else [])]
    return not any(isinstance(mode, ast.Constant) and "b" in str(mode.value) for mode in modes)


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def in_locale(module: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONIOENCODING"} | environment
    return subprocess.run([sys.executable, "-m", module, *arguments], cwd=ROOT, env=environment, capture_output=True)


def test_a_report_in_a_locale_without_umlauts(tmp_path):
    """The run's name, its folder, and what is printed hold signs that ASCII has not."""
    run = make_run(tmp_path / "größe 狐", [0.0, 0.1], [0.0, 0.2])
    config = read_config(run) | {"name": "Füchse 狐狸"}
    write_config(run, config)
    done = in_locale("src.report", str(run), **ASCII)
    assert done.returncode == 0, done.stderr[-2000:]
    page = (run / "report.html").read_bytes().decode()
    assert "<title>Füchse 狐狸" in page and "größe 狐" in page and b"report.html" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("locale", ["ascii", "latin-1"])
def test_a_run_in_another_locale_loses_nothing(locale, tmp_path):
    environment = ASCII
    if locale == "latin-1":
        made = ["localedef", "-i", "en_US", "-f", "ISO-8859-1", str(tmp_path / "en_US.ISO-8859-1")]
        if not shutil.which("localedef") or subprocess.run(made, capture_output=True).returncode:
            pytest.skip("no such locale can be made here")
        environment = {"LOCPATH": str(tmp_path), "LC_ALL": "en_US.ISO-8859-1", "PYTHONUTF8": "0"}
    prompts = ["ein Fuchs (fox) – größer", "狐狸 fox 🦊"]
    (tmp_path / "p.txt").write_text("\n".join(prompts), encoding="utf-8")
    name = "name='Gr\u00f6\u00dfe'" if locale == "latin-1" else "name=plain"
    overrides = ["+experiment=ddpo_hps", *TINY[1:3], "logger.mode=offline", "threads=1", "prompts=file"]
    overrides += [f"prompts.path={tmp_path / 'p.txt'}", f"run_dir={tmp_path / 'run'}"]
    done = in_locale("src.run", *overrides, name.encode("latin-1"), **environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(rows_of(tmp_path / "run", "iteration")) == 2
    expected = "Größe" if locale == "latin-1" else "plain"
    assert read_config(tmp_path / "run")["name"] == expected
    assert f"<title>{expected}" in (tmp_path / "run/report.html").read_bytes().decode()
    normaliser = load_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["progress"]["normaliser"]
    assert set(normaliser) <= set(prompts) and normaliser


# ------------------------------------------------------------------------------------------------------------ prompts


def test_marks_and_punctuation_are_no_part_of_an_animal(tmp_path):
    joined = "\ufeffcat\r\n\r\n\ufeffdog\na fox.\na line\u2028of its own: wolf"
    (tmp_path / "p.txt").write_bytes(joined.encode())
    prompts = prompts_from_file(str(tmp_path / "p.txt")).train
    assert prompts == ["cat", "dog", "a fox.", "a line\u2028of its own: wolf"]
    names = ["cat", "fox", "polar bear", "t-rex", "wolf"]
    for prompt, name in (("a fox.", "fox"), ('"a cat!"', "cat"), ("(polar  bear)", "polar bear"), ("T-Rex?", "t-rex")):
        assert names[subject(prompt, names)] == name
    with pytest.raises(UserError, match="know no animal"):
        subject("a cat-like thing", names)  # a hyphen is part of a word


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("cat\nein Fuchs, größer".encode("latin-1"), r"p\.txt, line 2: the byte 0xf6 is not UTF-8: save it as UTF-8"),
        ("cat\ndog".encode("utf-16"), r"p\.txt is in UTF-16: save it as UTF-8 \(iconv -f UTF-16 -t UTF-8\)"),
        ("cat\ndog".encode("utf-16-le"), r"p\.txt holds zero bytes: if it is in UTF-16"),
        (b"\xef\xbb\xbf\n \n", r"p\.txt holds no prompt"),
    ],
    ids=["latin-1", "utf-16", "utf-16 without a mark", "a mark alone"],
)
def test_prompts_in_another_encoding_are_told_with_their_line(tmp_path, content, message):
    (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(UserError, match=rf"prompts\.path=\S*{message}") as told:
        prompts_from_file(str(tmp_path / "p.txt"))
    assert "\n" not in str(told.value)


def test_a_prompt_that_a_judge_does_not_know_is_told_with_its_place(tmp_path):
    (tmp_path / "p.txt").write_text("cat\n\na submarine\n")
    (tmp_path / "h.txt").write_text("dog\n")
    sets = prompts_from_file(str(tmp_path / "p.txt"), str(tmp_path / "h.txt"))
    gold = GoldAnnotator(f"{WEIGHTS}/gold")
    with pytest.raises(UserError, match=r"prompts\.path=\S*p\.txt, line 3: the judges .* 'a submarine'"):
        check_prompts([gold], [*sets.train, *sets.held_out], sets.places)
    check_prompts([gold], sets.held_out, sets.places)
    with pytest.raises(UserError, match=r"^the judges"):
        check_prompts([gold], ["a submarine"], PromptSets(["a submarine"], []).places)


def test_prompts_from_json_in_other_encodings(tmp_path):
    for encoding in ("utf-8-sig", "utf-16", "utf-8"):
        (tmp_path / "p.json").write_text(json.dumps(["größer", "cat"], ensure_ascii=False), encoding=encoding)
        assert hpd(str(tmp_path / "p.json"), held_out=0).train == ["größer", "cat"]
    (tmp_path / "p.json").write_bytes(b'["gr\xf6\xdfer"]')
    with pytest.raises(UserError, match=r"p\.json is no readable JSON"):
        hpd(str(tmp_path / "p.json"), held_out=0)
    (tmp_path / "p.json").write_text('["half a fox \\ud83e", "cat"]')
    with pytest.raises(UserError, match=r"'half a fox \\ud83e' holds half a sign"):
        hpd(str(tmp_path / "p.json"), held_out=0)


# ---------------------------------------------------------------------------------------------- files that are broken


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "it is empty"),
        (b"suite: {name: mini\nseed: 0", "line 2"),
        (b"[1, 2]", "it is no configuration of a run"),
        (b"seed: 0\n", "it is no configuration of a run"),
        (b"name: gr\xf6\xdfe\n", "decode"),
        (b"\0" * 100, "unacceptable character"),
        (b"suite: 5\ntrain_reward: hps\niterations: 1\n", "it is no configuration of a run"),
        (b"suite: {rewards: {hps: {}}}\n", "it has no train_reward"),
    ],
    ids=["empty", "cut short", "a list", "a part", "latin-1", "zeros", "no suite", "cut at a line"],
)
def test_a_broken_configuration_is_told_with_what_to_do(tmp_path, content, fault, capfd, monkeypatch):
    run = make_run(tmp_path / "run", [0.0, 0.1], [0.0, 0.2])
    whole = make_run(tmp_path / "whole", [0.0, 0.1], [0.0, 0.2])
    (run / "config.yaml").write_bytes(content)
    (run / "best").mkdir()
    code, err = run_in_process([f"resume={run}"], capfd, monkeypatch)
    assert code == 2 and len(err.splitlines()) == 1 and err.startswith(f"error: {run}/config.yaml cannot be read ("), (
        err
    )
    assert fault in err and f"or start anew elsewhere; weights are in {run}/best." in err
    with pytest.raises(UserError, match="cannot be read"):
        find_runs([str(run)])
    assert [found.folder for found in find_runs([str(run), str(whole)])] == [whole]
    assert "left out: " in capfd.readouterr().err


@pytest.mark.parametrize("content", [b"", b"[1, 2]", b"seed: 0", b"suite: {rewards: {}}", b"name: gr\xf6\xdfe"])
def test_a_broken_configuration_beside_weights_is_told(tmp_path, content):
    run = make_run(tmp_path / "run", [0.0, 0.1], [0.0, 0.2])
    (run / "config.yaml").write_bytes(content)
    (run / "best").mkdir()
    said = rf"^{run}/config\.yaml cannot be read \(.+ or copy the weights to a folder without one, .+ are in {run}/best"
    with pytest.raises(UserError, match=said):
        as_in_run(source_run(f"{run}/best"), composed("+experiment=evaluate", f"weights={run}"), [])


def test_a_run_whose_configuration_is_cut_at_a_line_can_be_shown_but_not_gone_on_with(tmp_path):
    run = make_run(tmp_path / "run", [0.0, 0.1], [0.0, 0.2])
    assert len(find_runs([str(run)])) == 1
    for goes_on in (lambda: stored_config(run, []), lambda: sweeps._refuse_another(run, {})):
        with pytest.raises(UserError, match=r"config\.yaml cannot be read \(it has no policy\): put the config"):
            goes_on()
    assert stored_trainer(str(run)) == {}


@pytest.mark.parametrize("content", [b"", b"half a file", b"\0" * 1000], ids=["empty", "text", "zeros"])
def test_a_broken_checkpoint_is_told_with_what_to_do(tmp_path, content):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last.ckpt").write_bytes(content)
    (tmp_path / "best").mkdir()
    said = r"last\.ckpt is not a readable checkpoint \(.+\): put a copy of an earlier one there, or remove it, and "
    with pytest.raises(UserError, match=said) as told:
        load_checkpoint(tmp_path / "checkpoints/last.ckpt")
    assert str(told.value).endswith(
        f"resume={tmp_path} begins anew with the same configuration; weights are in {tmp_path}/best."
    )


def test_a_truncated_checkpoint_of_a_run(finished, tmp_path, capfd, monkeypatch):
    folder = tmp_path / "run=1"
    shutil.copytree(finished, folder)
    whole = (folder / "checkpoints/last.ckpt").read_bytes()
    (folder / "checkpoints/last.ckpt").write_bytes(whole[: len(whole) // 2])
    code, err = run_in_process([f"resume='{folder}'"], capfd, monkeypatch)
    assert code == 2 and "is not a readable checkpoint" in err and f"\"resume='{folder}'\" begins anew" in err
    assert (folder / "best").is_dir() and (folder / "summary.json").exists()


def test_rows_that_a_crash_or_a_callback_left(tmp_path):
    """A machine that loses power leaves zeros; Lightning's own callbacks log rows without a kind."""
    path = tmp_path / "metrics.jsonl"
    rows = [{"kind": "iteration", "iteration": k, "prompt": "ü"} for k in range(3)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(text.encode() + b'{"lr-AdamW": 1e-4}\nnull\n5\n' + b"\0" * 50 + b"\n\xff\xfe\n" + b'{"kind": "it')
    JsonlLogger(path).forget_after(1)
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == [
        *rows[:2],
        {"lr-AdamW": 1e-4},
    ]
    run = make_run(tmp_path / "run", [0.0, 0.1], [0.0, 0.2])
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'\n{"lr-AdamW": 1e-4}\nnull\n\xff\n')
    assert len(find_runs([str(run)])[0].evaluations) == 2


@contextmanager
def full_disk(free: int) -> Iterator[None]:
    """No file may grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


WRITERS = {  # of a run: the file, and what writes it
    "metrics.jsonl": lambda run: JsonlLogger(run / "metrics.jsonl").log_metrics({"kind": "iteration", "x": "y" * 9000}),
    "samples/00001.png": lambda run: save_png(Image.effect_noise((99, 99), 90), run / "samples/00001.png"),
    "report.html": lambda run: write_report(find_runs([str(run)]), run / "report.html"),
    "lora": lambda run: build().policy.save(run),
    "best.partial/lora": lambda run: keep_weights(run / "best", build()),
    "reward": lambda run: keep(CLIPReward(f"{WEIGHTS}/hps"), run / "reward"),
    "samples/0.npz": lambda run: write_arrays(run / "samples/0.npz", x=np.zeros(9999)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_told_with_the_file_and_the_command_that_goes_on(name, tmp_path, capsys):
    run = make_run(tmp_path / "run", [0.0, 0.1], [0.0, 0.2])
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "metrics.jsonl"}
    now_at(run, resumable=True)
    with pytest.raises(SystemExit) as ended, told_in_one_sentence(), full_disk((run / "metrics.jsonl").stat().st_size):
        WRITERS[name](run)
    err = capsys.readouterr().err.splitlines()[-1]  # after the bars of what is loaded
    place = f"{run}/{name}"
    told = rf"(\[Errno 27\] File too large: '{place}'; free some space|{place} could not be written \(.+: make room)"
    assert ended.value.code == 2 and re.fullmatch(rf"error: {told}, then .* resume={run} goes on with it\.", err), err
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_report_with_a_picture_cut_short(tmp_path):
    run = make_run(tmp_path / "run", [0.0, 0.1], [0.0, 0.2])
    picture = run / "samples/00010.png"
    picture.write_bytes(picture.read_bytes()[:60])
    page = write_report(find_runs([str(run)]), tmp_path / "report.html").read_text(encoding="utf-8")
    assert ">before training<" in page and "640 queries: hps" not in page


def test_a_report_of_a_run_without_a_watch(tmp_path):
    run = make_run(tmp_path / "run", [0.0, 0.1], [0.0, 0.2])
    for callbacks in (None, {}, {"watch": None}):
        write_config(run, read_config(run) | {"callbacks": callbacks})
        assert write_report(find_runs([str(run)]), tmp_path / "report.html").exists()


def test_the_control_is_found_from_anywhere(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", [0.0, 0.1], [0.0, 0.2])
    cfg = check(composed())
    write_config(run, cfg)
    (found,) = find_runs([str(run)])
    assert found.control is not None
    monkeypatch.chdir(tmp_path)
    assert found.control is not None


def test_a_sweep_whose_files_are_broken_is_summed_up_all_the_same(tmp_path, capsys):
    (tmp_path / "jobs").mkdir()
    for name, content in (("a", "{"), ("b", json.dumps({"job": "b", "token": "t", "state": "done", "swept": []}))):
        (tmp_path / "jobs" / f"{name}.json").write_text(content)
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text("{")
    sweeps._sum_up(tmp_path, "t", [], stopped=False)
    assert "1 of 1 jobs are finished" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"summary\.json is no readable JSON .* remove it, and the same command"):
        sweeps._objective(tmp_path / "a", "eval/gold/gain")


def test_files_that_hold_something_else_are_told(tmp_path):
    run = make_run(tmp_path / "run", [0.0, 0.1], [0.0, 0.2])
    for name in ("versions.json", "summary.json"):
        (run / name).write_text("[1]")
    with pytest.raises(UserError, match=r"versions\.json holds no JSON object: remove it, and the run goes on\."):
        write_config(run, {"seed": 0})
    with pytest.raises(UserError, match=r"versions\.json holds no JSON object"):
        find_runs([str(run)])[0].commit  # noqa: B018
    with pytest.raises(UserError, match=r"summary\.json holds no JSON object: remove it, and the same command"):
        sweeps._objective(run, "eval/gold/gain")
    assert sweeps._gains(run) == {} and queries_of(run) is None


def test_a_versions_file_that_is_broken(tmp_path):
    (tmp_path / "versions.json").write_text("")
    with pytest.raises(UserError, match=r"versions\.json is no readable JSON .*: remove it, and the run goes on\."):
        write_config(tmp_path, {"seed": 0})


@pytest.mark.parametrize(
    ("reward", "path", "message"),
    [
        ("aesthetic", "hps", "aesthetic path=src/mini/weights/hps: its config.json is of another kind of model"),
        ("imagereward", "hps", "reward path=src/mini/weights/hps: its config.json is of another kind of model"),
        ("hps", "{cut}/hps", "reward path={cut}/hps: its weights cannot be read"),
        ("aesthetic", "{cut}/aesthetic", "model.safetensors cannot be read"),
        ("imagereward", "{cut}/imagereward", "model.safetensors cannot be read"),
        ("hps", "{json}/hps", "preprocessor_config.json cannot be read"),
        ("aesthetic", "{json}/aesthetic", "config.json cannot be read"),
        ("imagereward", "{other}/imagereward", "the weights are of another architecture"),
    ],
)
def test_weights_that_are_broken_or_anothers_are_named(tmp_path, reward, path, message):
    broken = {name: tmp_path / name for name in ("cut", "json", "other")}
    if "{" in path:
        ((kind, folder),) = [(kind, folder) for kind, folder in broken.items() if f"{{{kind}}}" in path]
        shutil.copytree(ROOT / WEIGHTS / reward, folder / reward)
        if kind == "cut":
            (folder / reward / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0half")
        elif kind == "json":
            name = "preprocessor_config.json" if reward == "hps" else "config.json"
            (folder / reward / name).write_text("{")
        else:
            shutil.copy(ROOT / WEIGHTS / "aesthetic/model.safetensors", folder / reward)
    place = path.format(**broken) if "{" in path else f"{WEIGHTS}/{path}"
    with pytest.raises(Exception) as told:
        instantiate(composed(f"suite.rewards.{reward}.path='{place}'").suite.rewards[reward], _convert_="all")
    fault = told.value.__cause__ or told.value
    assert isinstance(fault, UserError) and message.format(**broken) in str(fault) and "\n" not in str(fault), fault


FILES_OF_A_REWARD = ("config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json")
BROKEN = [(name, content) for name in FILES_OF_A_REWARD for content in (b"[]", b"{", b'{"a": "gr\xf6\xdfe"}')]


@pytest.mark.parametrize(
    ("name", "content"), [*BROKEN, *((name, b'{"model": {}}') for name in FILES_OF_A_REWARD[1::2])]
)
def test_a_broken_file_of_a_reward_is_named(tmp_path, name, content):
    folder = shutil.copytree(ROOT / WEIGHTS / "hps", tmp_path / "hps")
    (folder / name).write_bytes(content)
    with pytest.raises(UserError) as told:
        CLIPReward(str(folder))
    assert str(folder) in str(told.value) and name in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize(
    "judge", [lambda path: GoldAnnotator(str(path.parent)), lambda path: ClassifierTopOne(str(path))]
)
def test_a_judge_of_other_weights_is_refused_and_not_made_up(tmp_path, judge):
    """transformers fills what is missing with random weights, and says so where nobody looks."""
    shutil.copytree(ROOT / WEIGHTS / "hps", tmp_path / "member")
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "member"))):
        judge(tmp_path / "member")
