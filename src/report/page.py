"""The report's page: sections of plots, pictures and tables in one HTML file that needs no network."""

import base64
import csv
import io
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
import plotly.io
from PIL import Image
from plotly.offline import get_plotlyjs

from src.files import write_text
from src.progress import track
from src.report import figures
from src.report.headline import headline, setting
from src.report.runs import Run, differences, flat
from src.report.series import columns_of, series_csv, verdict, weighed
from src.report.watching import collapsed, detect

MAX_GRIDS, GRID_WIDTH = 8, 1024


def write_report(runs: list[Run], target: Path) -> Path:
    """Writes the page, whole or not at all."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    html = environment.get_template("page.html.j2").render(
        title=runs[0].config["name"] if len(runs) == 1 else f"{len(runs)} runs",
        plotlyjs=get_plotlyjs(),
        headlines=[
            {"label": run.label, "text": f"{verdict(run)} {headline(run)}".strip(), "setting": setting(run)}
            for run in runs
        ],
        shared=[section for section in _shared(runs) if section["plots"]],
        runs=[_one(run) for run in track(runs, "pictures and figures of runs")],
        differences=_difference_table(runs),
        count=len(runs),
        watch=_watch_table(runs),
    )
    write_text(target, html)
    if len(figures.treatments(runs)) > 1:
        write_text(target.with_name(f"{target.stem}_matrix.csv"), matrix_csv(runs))
    series = [run for run in runs if _is_series(run)]
    for k, run in enumerate(series):
        which = f"_{k + 1}" if len(series) > 1 else ""
        write_text(target.with_name(f"{target.stem}_series{which}.csv"), series_csv(run))
    return target


def _is_series(run: Run) -> bool:
    """Whether it looked at several weights, or at several degrees of them."""
    return run.config.get("task") == "evaluate" and len(run.evaluations) > 2


def matrix_csv(runs: list[Run]) -> str:
    """The cross-reward matrix in long form: trained on, evaluated on, runs, gain and its 95% interval, base sd."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["trained_on", "evaluated_on", "runs", "gain", "low", "high"])
    counts = {name: len(part) for name, part in figures.treatments(runs).items()}
    for trained, row in figures.matrix_rows(runs).items():
        for reward, cell in row.items():
            writer.writerow([trained, reward, counts[trained], *(f"{value:.4f}" for value in cell)])
    return buffer.getvalue()


def _shared(runs: list[Run]) -> list[dict[str, Any]]:
    judge = figures.stand_in(runs)
    truth = "the truth" if judge == figures.JUDGE else "the mean of the others, for this suite has no gold"
    return [
        _section(
            f"Proxy against {judge}",
            [figures.proxy_against_judge(runs)],
            f"Right: what was trained on. Up: {truth}. Dashed: averaged weights. Dotted, the control: choosing among "
            "base samples, no training.",
        ),
        _section(
            f"{judge[0].upper()}{judge[1:]} over distance from the base",
            [figures.kl_frontier(runs)],
            _note_on_distance(runs),
            _fit_table(runs),
        ),
        _section(
            "Controls by what a picture costs",
            figures.controls_by_cost(runs),
            "Nothing is trained: reward queries that are asked for one picture.",
        ),
        _section(
            "Reward over diversity", figures.diversity_frontier(runs) if any(r.is_frontier for r in runs) else [], ""
        ),
        _section(
            "Cross-reward matrix",
            [figures.cross_reward_matrix(runs)],
            "Gain at the end, base sd, and its 95% interval: over prompts, or of several runs a t interval over them. "
            "Where some are finished, those that are not are left out.",
        ),
        _section("What the pictures do", figures.small_multiples(runs, figures.LOOKS, "evaluation"), ""),
        _section("Health of the optimisation", figures.small_multiples(runs, figures.HEALTH, "iteration"), ""),
    ]


def _note_on_distance(runs: list[Run]) -> str:
    """What the curves and the axis are; of controls only where there are some."""
    told = []
    if any(map(figures.fit_of, runs)):
        told += ["Dashed: a fit of gold = d (alpha - beta log d), d = sqrt(KL); this beta is no regulariser's."]
    told += ["The KL is that of whole trajectories, which bounds that of the pictures from above."]
    if any(run.is_best_of_n for run in runs):
        told += ["Of best of n the fit is d (alpha - beta d), and the KL that of the picture chosen: compare above."]
    if any(run.config.get("task") == "das" for run in runs):
        told += ["DAS has no KL."]
    return " ".join(told)


def _section(
    title: str, drawn: list[go.Figure | None], note: str, table: list[list[str]] | None = None
) -> dict[str, Any]:
    plots = [_html(figure) for figure in drawn if figure is not None]
    return {"title": title, "plots": plots, "note": note, "table": table}


def _fit_table(runs: list[Run]) -> list[list[str]]:
    """A heading, then a row for each run that can be fitted."""
    rows = [["run", "alpha", "beta", "R²", "highest by the fit at", "highest seen at"]]
    for run in runs:
        fit = figures.fit_of(run)
        if fit is None:
            continue
        gold = run.series(f"eval/{figures.JUDGE}/gain")
        seen = run.series("kl/sqrt")[gold.index(max(gold))]
        (a_low, a_high), (b_low, b_high) = fit.alpha_interval, fit.beta_interval
        beyond = ", extrapolated" if fit.peak > max(run.series("kl/sqrt")) else ""
        alpha = f"{fit.alpha:.3f} ({a_low:.3f} .. {a_high:.3f})"
        beta = f"{fit.beta:.4f} ({b_low:.4f} .. {b_high:.4f})"
        rows.append([run.label, alpha, beta, f"{fit.r2:.2f}", f"{fit.peak:,.1f}{beyond}", f"{seen:,.1f}"])
    return rows if len(rows) > 1 else []


def _html(figure: go.Figure) -> str:
    options = {"responsive": True, "displaylogo": False}
    return plotly.io.to_html(figure, full_html=False, include_plotlyjs=False, config=options, default_width="100%")


def _one(run: Run) -> dict[str, Any]:
    profile, health = figures.kl_profile(run), figures.health_by_step(run)
    hacks = run.folder / "samples" / "hacks.png"
    return {
        "label": run.label,
        "folder": str(run.folder),
        "notes": _notes(run),
        "curves": _html(figures.reward_curves(run)),
        "averaged": run.has_average,
        "profile": _html(profile) if profile else None,
        "last_step": _share_of_last_step(run),
        "health": [_html(figure) for figure in health],
        "rewards": [_reward_row(run, name) for name in run.rewards if f"eval/{name}/gain" in run.evaluations[-1]],
        "grids": [
            {"caption": caption, "source": source} for path, caption in _grids(run) if (source := _picture(path))
        ],
        "trained": run.trained,
        "series": _series_rows(run) if _is_series(run) else [],
        "judge": run.judge or figures.OTHERS,
        "hacks": _picture(hacks) if hacks.exists() else None,
        "config": sorted((key, value) for key, value in flat(run.config).items() if asked_by(run, key)),
    }


def _series_rows(run: Run) -> list[list[str]]:
    """A heading, then a row for each evaluation."""
    columns = columns_of(run, weighed(run))
    return [list(columns), *(list(cells) for cells in zip(*columns.values(), strict=True))]


def _share_of_last_step(run: Run) -> float | None:
    """Of the KL from the base, at the last evaluation."""
    last = run.evaluations[-1]
    steps = [last[key] for key in sorted(last, key=_number) if key.startswith("kl/step_")]
    return steps[-1] / sum(steps) if len(steps) > 1 and sum(steps) > 0 else None


def _number(key: str) -> int:
    end = key.rsplit("_", 1)[-1]
    return int(end) if end.isdigit() else -1


OF_TASKS = {  # keys that only some tasks ask
    **dict.fromkeys(("pairs", "pictures", "reward_training"), ("train_reward",)),
    "pool": ("best_of_n",),
    **dict.fromkeys(("weights", "scale", "aig", "steps", "queries_per_step"), ("evaluate",)),
}


def asked_by(run: Run, key: str) -> bool:
    """Whether the run's task asks this key, so that its value says something about the run."""
    task = run.config.get("task", "finetune")
    return task in OF_TASKS.get(key.split(".")[0], (task,))


def _notes(run: Run) -> list[str]:
    """What the figures do not say of themselves."""
    last, notes = run.evaluations[-1], []
    if "eval/joint_domination" in last:
        up, down = last["eval/joint_domination"], last["eval/joint_collapse"]
        notes.append(
            f"Better than the base's under all rewards at once: {up:.0%} of the pictures; worse under all: {down:.0%}."
        )
    if "das/alpha" in last:
        notes.append("No KL: that of sampling with particles from the base has no closed form.")
    elif "code/n" in last:
        notes.append(
            "The KL is that of whole trajectories, blocks (log N - (N - 1) / N); of pictures it is at most that."
        )
    elif "kl/trajectory" not in last:
        notes.append("No KL: at eta 0 a step has no density, so that there is no distance from the base to tell.")
    if run.layout == "checkpoints":
        notes.append(
            "The axis has the numbers of the checkpoints; how many images they were trained on is not known here."
        )
    return notes


def _reward_row(run: Run, name: str) -> dict[str, Any]:
    last = run.evaluations[-1]
    values = {
        key: last.get(f"eval/{name}/{key}") for key in ("gain", "gain_low", "gain_high", "below_peak", "win_rate")
    }
    held_out = {f"held_out_{key}": last.get(f"held_out/{name}/{key}") for key in ("gain", "gain_low", "gain_high")}
    return {"name": name, "trained": name == run.trained, **held_out, **values}


def _grids(run: Run) -> list[tuple[Path, str]]:
    """At most eight picture grids: the first, the last, gold's best, and others evenly between."""
    found = sorted((run.folder / "samples").glob("[0-9]*.png"))
    by_iteration = {int(path.stem): path for path in found}
    rows = {row["iteration"]: row for row in run.evaluations if row["iteration"] in by_iteration}
    if not rows:
        return []
    captions = dict(zip((row["iteration"] for row in run.evaluations), figures.captions(run), strict=True))
    iterations = sorted(rows)
    spread = {iterations[round(k * (len(iterations) - 1) / (MAX_GRIDS - 2))] for k in range(MAX_GRIDS - 1)}
    best = max(iterations, key=lambda i: rows[i].get("eval/gold/gain", 0.0))
    chosen = []
    for i in sorted(spread | {best}):
        row = rows[i]
        gains = ", ".join(
            f"{name} {row[f'eval/{name}/gain']:+.2f}" for name in run.rewards if f"eval/{name}/gain" in row
        )
        of_base = row is run.evaluations[0]  # whose gains are 0
        chosen.append((by_iteration[i], captions[i] if of_base else f"{captions[i]}: {gains}"))
    return chosen


def _picture(path: Path) -> str | None:
    """A picture as a data URL; None of one that is cut short."""
    try:
        picture = Image.open(path).convert("RGB")
    except (OSError, SyntaxError):
        return None
    if picture.width > GRID_WIDTH:
        picture = picture.resize((GRID_WIDTH, picture.height * GRID_WIDTH // picture.width))
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _watch_table(runs: list[Run]) -> list[list[str]]:
    """A row for each run whose truth is known and whose watch followed something."""
    rows = []
    for run in runs:
        watch = (run.config.get("callbacks") or {}).get("watch") or {}
        rule = {key: watch[key] for key in ("signal", "margin", "patience", "keep") if key in watch}
        found = detect(run, **rule) if watch and not run.is_frontier else None
        if found is None:
            continue
        below = [row["watch/below_peak"] for row in run.watch if "watch/below_peak" in row]
        fallen = f"none; at {below[-1]:.2f} of {rule['margin']:.2f}" if below and "margin" in rule else "none"
        told = fallen if found.alarm is None else f"{found.alarm:,}"
        if collapses := [run.queries[k] for k in collapsed(run)]:
            told = f"{told}; joint collapse at {collapses[0]:,}"
        delay = "-" if found.delay is None else f"{found.delay:+,}"
        gains = ["-" if gain != gain else f"{gain:+.2f}" for gain in (found.shipped, found.held_out, found.last)]
        verdict = "" if collapses and found.verdict == "missed" else found.verdict
        rows.append([run.label, told, f"{found.judge_peak:,}", delay, f"{found.best:,}", *gains, verdict])
    return rows


def _difference_table(runs: list[Run]) -> dict[str, Any] | None:
    if len(runs) < 2:
        return None
    keys = differences(runs)
    return {"keys": keys, "rows": [[run.label, *(run.value(key) for key in keys)] for run in runs]}
