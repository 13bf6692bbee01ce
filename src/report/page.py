"""The report's page: sections of plots, pictures and tables in one HTML file that needs no network."""

import base64
import io
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
import plotly.io
from PIL import Image
from plotly.offline import get_plotlyjs

from src.report import figures
from src.report.runs import Run, differences, flat, headline
from src.report.watching import detect

MAX_GRIDS, GRID_WIDTH = 8, 1024


def write_report(runs: list[Run], target: Path) -> Path:
    """Writes the page, whole or not at all."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    html = environment.get_template("page.html.j2").render(
        title=runs[0].config["name"] if len(runs) == 1 else f"{len(runs)} runs",
        plotlyjs=get_plotlyjs(),
        headlines=[{"label": run.label, "text": headline(run)} for run in runs],
        shared=[section for section in _shared(runs) if section["plot"]],
        runs=[_one(run) for run in runs],
        differences=_difference_table(runs),
        count=len(runs),
        watch=_watch_table(runs),
    )
    temporary = target.with_suffix(".tmp")
    temporary.write_text(html)
    temporary.replace(target)
    return target


def _shared(runs: list[Run]) -> list[dict[str, Any]]:
    return [
        _section("Proxy against gold", figures.proxy_against_judge(runs), "Right: what was trained on. Up: the truth."),
        _section(
            "Gold over distance from the base",
            figures.kl_frontier(runs),
            "Dashed: R = d (alpha - beta log d); of best-of-n, d (alpha - beta d).",
        ),
        _section(
            "Cross-reward matrix",
            figures.cross_reward_matrix(runs),
            "Gain at the end, base sd, and its 95% interval over prompts; of several runs mean, lowest and highest.",
        ),
        _section("What the pictures do", figures.small_multiples(runs, figures.LOOKS, "evaluation"), ""),
        _section("Health of the optimisation", figures.small_multiples(runs, figures.HEALTH, "iteration"), ""),
    ]


def _section(title: str, figure: go.Figure | None, note: str) -> dict[str, Any]:
    return {"title": title, "plot": _html(figure) if figure else None, "note": note}


def _html(figure: go.Figure) -> str:
    options = {"responsive": True, "displaylogo": False}
    return plotly.io.to_html(figure, full_html=False, include_plotlyjs=False, config=options, default_width="100%")


def _one(run: Run) -> dict[str, Any]:
    profile, health = figures.kl_profile(run), figures.health_by_step(run)
    hacks = run.folder / "samples" / "hacks.png"
    return {
        "label": run.label,
        "folder": str(run.folder),
        "curves": _html(figures.reward_curves(run)),
        "profile": _html(profile) if profile else None,
        "health": _html(health) if health else None,
        "rewards": [_reward_row(run, name) for name in run.rewards if f"eval/{name}/gain" in run.evaluations[-1]],
        "grids": [{"caption": caption, "source": _picture(path)} for path, caption in _grids(run)],
        "trained": run.trained,
        "judge": next(iter(run.config["suite"].get("judges") or {}), "the other rewards"),
        "hacks": _picture(hacks) if hacks.exists() else None,
        "config": sorted(flat(run.config).items()),
    }


def _reward_row(run: Run, name: str) -> dict[str, Any]:
    last = run.evaluations[-1]
    values = {
        key: last.get(f"eval/{name}/{key}") for key in ("gain", "gain_low", "gain_high", "below_peak", "win_rate")
    }
    return {"name": name, "trained": name == run.trained, "held_out": last.get(f"held_out/{name}/gain"), **values}


def _grids(run: Run) -> list[tuple[Path, str]]:
    """At most eight picture grids: the first, the last, gold's best, and others evenly between."""
    found = sorted((run.folder / "samples").glob("[0-9]*.png"))
    by_iteration = {int(path.stem): path for path in found}
    rows = {row["iteration"]: row for row in run.evaluations if row["iteration"] in by_iteration}
    if not rows:
        return []
    iterations = sorted(rows)
    spread = {iterations[round(k * (len(iterations) - 1) / (MAX_GRIDS - 2))] for k in range(MAX_GRIDS - 1)}
    best = max(iterations, key=lambda i: rows[i].get("eval/gold/gain", 0.0))
    chosen = []
    for i in sorted(spread | {best}):
        row = rows[i]
        gains = ", ".join(
            f"{name} {row[f'eval/{name}/gain']:+.2f}" for name in run.rewards if f"eval/{name}/gain" in row
        )
        chosen.append((by_iteration[i], f"{row['reward_queries']:,} queries: {gains}"))
    return chosen


def _picture(path: Path) -> str:
    picture = Image.open(path).convert("RGB")
    if picture.width > GRID_WIDTH:
        picture = picture.resize((GRID_WIDTH, picture.height * GRID_WIDTH // picture.width))
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _watch_table(runs: list[Run]) -> list[list[str]]:
    """A row for each run whose truth is known and whose watch followed something."""
    rows = []
    for run in runs:
        watch = run.config.get("callbacks", {}).get("watch", {})
        rule = {key: watch[key] for key in ("signal", "margin", "patience", "keep") if key in watch}
        found = detect(run, **rule) if watch else None
        if found is None:
            continue
        told = "-" if found.alarm is None else f"{found.alarm:,}"
        delay = "-" if found.delay is None else f"{found.delay:+,}"
        verdict = "missed" if found.missed else "false alarm" if (found.delay or 0) < 0 else ""
        gains = (f"{found.shipped:+.2f}", f"{found.last:+.2f}")
        rows.append([run.label, told, f"{found.judge_peak:,}", delay, f"{found.best:,}", *gains, verdict])
    return rows


def _difference_table(runs: list[Run]) -> dict[str, Any] | None:
    if len(runs) < 2:
        return None
    keys = differences(runs)
    return {"keys": keys, "rows": [[run.label, *(flat(run.config).get(key) for key in keys)] for run in runs]}
