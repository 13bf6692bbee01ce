"""The report of a real run in headless Chromium: every plot drawn, no console error, no request to the network."""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

import pytest

from tests.forked import run_forked

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-quic"),
    *("--enable-logging=stderr", "--virtual-time-budget=20000"),
]
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)")


@dataclass
class Opened:
    """What a browser made of a page."""

    dom: str
    console: list[str]
    hosts: set[str]


def open_page(page: Path, scratch: Path) -> Opened:
    log = scratch / "net.json"
    call = [CHROMIUM, *QUIET, f"--user-data-dir={scratch / 'profile'}", f"--log-net-log={log}", "--dump-dom"]
    done = subprocess.run([*call, f"file://{page}"], capture_output=True, text=True, timeout=120, check=True)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    urls = re.findall(r'"url":"(https?://[^"]+)"', log.read_text())
    return Opened(done.stdout, console, {urlparse(url).hostname or "" for url in urls})


@pytest.fixture(scope="module")
def own_hosts(tmp_path_factory) -> set[str]:
    """What Chromium itself asks at its start, whatever the page."""
    scratch = tmp_path_factory.mktemp("blank")
    (scratch / "blank.html").write_text("<p>nothing</p>")
    return open_page(scratch / "blank.html", scratch).hosts


def test_the_report_of_a_real_run(tmp_path, own_hosts):
    folder = tmp_path / "run"
    options = ["+experiment=ddpo_hps", "+debug=tiny", "logger.mode=disabled", f"run_dir={folder}", "iterations=3"]
    options += ["evaluation.every=1"]  # enough points for the fit
    done = run_forked(*options)
    assert done.returncode == 0, done.stderr[-2000:]
    opened = open_page(folder / "report.html", tmp_path)
    assert opened.console == []
    assert opened.hosts <= own_hosts
    plots = re.split(r'class="[^"]*plotly-graph-div', opened.dom)[1:]
    assert len(plots) >= 7  # curves, health by step, KL profile, proxy against gold, frontier, matrix, looks, health
    assert all('class="main-svg"' in plot for plot in plots)
    rewards = [row for row in map(json.loads, (folder / "metrics.jsonl").open()) if row["kind"] == "evaluation"][-1]
    assert f"{rewards['eval/hps/gain']:+.2f}" in opened.dom


def test_a_broken_page_is_noticed(tmp_path, own_hosts):
    page = tmp_path / "broken.html"
    page.write_text("<img src='http://example.org/a.png'><script>undefined_function()</script>")
    opened = open_page(page, tmp_path)
    assert any("undefined_function" in line for line in opened.console)
    assert opened.hosts - own_hosts == {"example.org"}
