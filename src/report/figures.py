"""The plots of the report. Every function takes runs and returns a plotly figure, or None where there is nothing."""

import json
import math
from typing import Any

import numpy as np
import plotly.graph_objects as go

from src.metrics.fits import Fit, fit_reward
from src.metrics.intervals import t_quantile
from src.overrides import choice_of
from src.report.runs import CHOICES_OF_CONTROLS, Axis, Run, differences

# Okabe and Ito's palette: told apart by colour-blind readers too
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8F7A00", "#7A7A7A")
JUDGE, GOLDEN = "gold", COLOURS[1]
OTHERS = "the other rewards"  # stand in for gold where there is none
UNSAID = ("seed", "train_reward", "task", "suite.", "callbacks.", "evaluation.", "trainer.", "optimizer.")
LAYOUT = {
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "font": {"color": "#7d7d7d", "size": 13},
    "margin": {"l": 55, "r": 15, "t": 35, "b": 45},
    "legend": {"orientation": "h", "y": -0.2},
    "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "rgba(128,128,128,0.6)"},
    "hovermode": "x unified",
    "height": 400,
}
AXIS = {"gridcolor": "rgba(128,128,128,0.25)", "zerolinecolor": "rgba(128,128,128,0.6)"}


def styled(figure: go.Figure, **layout) -> go.Figure:
    """The same figure in the style of all: margins, fonts, grid."""
    return figure.update_layout(**(LAYOUT | layout)).update_xaxes(**AXIS).update_yaxes(**AXIS)


def colour_of(k: int, opacity: float = 1.0) -> str:
    """The colour of the k-th curve, as CSS writes it; after the last one they begin anew."""
    code = COLOURS[k % len(COLOURS)]
    red, green, blue = (int(code[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def reward_curves(run: Run) -> go.Figure:
    """Gain of every reward over the run's axis, with 95% intervals; dotted lines where neurons were reset."""
    figure, shown = go.Figure(), [k for k, place in enumerate(run.places) if can_be_shown(run, place)]
    x = [run.places[k] for k in shown]
    names = [name for name in run.rewards if f"eval/{name}/gain" in run.evaluations[0]]
    for name, k in places_in_palette(names).items():
        low, high, gains, held_out = (
            [run.series(key)[k] for k in shown]
            for key in (*(f"eval/{name}/{part}" for part in ("gain_low", "gain_high", "gain")), f"held_out/{name}/gain")
        )
        figure.add_scatter(
            x=x + x[::-1],
            y=high + low[::-1],
            mode="lines",
            fill="toself",
            fillcolor=colour_of(k, 0.15),
            line={"width": 0},
            hoverinfo="skip",
            showlegend=False,
        )
        label = f"{name} (trained)" if name == run.trained else name
        line = {"color": colour_of(k), "width": 3 if name in (run.trained, JUDGE) else 1.5}
        figure.add_scatter(x=x, y=gains, name=label, line=line)
        if not all(map(math.isnan, held_out)):
            followed = name in (run.trained, JUDGE)
            dashed = {"color": colour_of(k), "width": 2 if followed else 1, "dash": "dash"}
            prompts = f"{name}, held-out prompts"
            figure.add_scatter(x=x, y=held_out, name=prompts, line=dashed, showlegend=followed)
        if run.has_average:
            dotted = {"color": colour_of(k), "width": 1.5, "dash": "dot"}
            averaged = [run.series(f"eval_ema/{name}/gain")[j] for j in shown]
            figure.add_scatter(x=x, y=averaged, name=f"{name}, average", line=dotted)
    for row in run.iterations if run.axis_of_iterations is run.axis else ():
        if row.get("reset/share", 0) > 0 or row.get("reset/lora_share", 0) > 0:
            figure.add_vline(x=row[run.axis.key], line={"color": "rgba(128,128,128,0.35)", "dash": "dot", "width": 1})
    if run.place_of_alarm is not None:
        line = {"color": "#D55E00", "width": 2}
        figure.add_vline(
            x=run.place_of_alarm, line=line, annotation_text="watch: alarm", annotation_position="top left"
        )
    styled(figure, xaxis_title=run.axis.title, yaxis_title="gain over the base [base sd]")
    return figure.update_xaxes(type="log") if run.axis.log else figure


def places_in_palette(names: list[str]) -> dict[str, int]:
    """Of each reward's colour: gold has a golden one, the others the rest in turn."""
    golden = COLOURS.index(GOLDEN)
    others = [k for k in range(2 * len(names) + 1) if k % len(COLOURS) != golden]
    return {name: golden if name == JUDGE else others.pop(0) for name in names}


def can_be_shown(run: Run, place: float | int) -> bool:
    """Whether the axis has such a place."""
    return math.isfinite(place) and (place > 0 or not run.axis.log)


def shown_places(run: Run) -> list[float | int | None]:
    """Of the evaluations on the axis; None for what no plot can show."""
    return [place if can_be_shown(run, place) else None for place in run.places]


def captions(run: Run) -> list[str]:
    """Of the evaluations, for whoever points at them."""
    return [run.told(k).removeprefix("at ") for k in range(len(run.evaluations))]


def proxy_against_judge(runs: list[Run]) -> go.Figure | None:
    """Where training went: gain of the trained reward to the right, gain of gold upwards.

    Dotted, the control: choosing the best of n base samples by the same reward, where the suite knows it.
    """
    figure, judge = go.Figure(), stand_in(runs)
    for k, run in enumerate(runs):
        if run.trained is None or all(map(math.isnan, judged(run, judge))):
            continue
        for of, name, dash in _curves(run):
            figure.add_scatter(
                x=run.series(f"{of}/{run.trained}/gain"),
                y=judged(run, judge, of),
                mode="lines+markers",
                name=name,
                line={"color": colour_of(k), "dash": dash},
                text=captions(run),
            )
    if not figure.data:
        return None
    for trained, curve in {run.trained: run.control for run in runs if not run.is_control}.items():
        if curve and judge == JUDGE:
            figure.add_scatter(
                x=curve["proxy"],
                y=curve["judge"],
                mode="lines",
                name=f"best of n = 1 .. {curve['n'][-1]} by {trained}",
                line={"color": "#7A7A7A", "dash": "dot"},
                text=[f"n = {n}" for n in curve["n"]],
            )
    return styled(
        figure,
        hovermode="closest",
        xaxis_title="gain of the trained reward [base sd]",
        yaxis_title=f"gain of {judge} [base sd]",
    )


def stand_in(runs: list[Run]) -> str:
    """What tells where the trained reward leads: gold where any run has it, else the mean of the other rewards."""
    return JUDGE if any(f"eval/{JUDGE}/gain" in run.evaluations[-1] for run in runs) else OTHERS


def judged(run: Run, judge: str, of: str = "eval") -> list[float | int]:
    """Gains by `stand_in`, at each evaluation; nan where there are none."""
    if judge == JUDGE:
        return run.series(f"{of}/{JUDGE}/gain")
    each = [run.series(f"{of}/{name}/gain") for name in run.others]
    return [float(np.mean(gains)) for gains in zip(*each, strict=True)] or [math.nan] * len(run.evaluations)


def _curves(run: Run) -> list[tuple[str, str, str]]:
    """What was evaluated, its name and how it is drawn: the weights, and their average where one was kept."""
    averaged = [("eval_ema", f"{run.label}, averaged weights", "dash")] if run.has_average else []
    return [("eval", run.label, "solid"), *averaged]


def controls_by_cost(runs: list[Run]) -> list[go.Figure]:
    """What controls without training make of a picture's reward queries: their reward, and gold; none of runs alone."""
    controls, axis = [run for run in runs if run.is_control], CHOICES_OF_CONTROLS["reward_queries"]
    figures = []
    for name in dict.fromkeys([*(run.trained for run in controls), JUDGE]):
        figure = go.Figure()
        for k, run in enumerate(controls):
            points = zip(run.queries, run.series(f"eval/{name}/gain"), captions(run), strict=True)
            paid = [point for point in points if point[0] > 0]  # the base's pictures cost nothing
            x, y, text = [cost for cost, _, _ in paid], [gain for _, gain, _ in paid], [told for _, _, told in paid]
            if not all(map(math.isnan, y)):
                line = {"color": colour_of(k), "dash": "dot"}
                figure.add_scatter(x=x, y=y, mode="lines+markers", name=run.control_name, line=line, text=text)
        if figure.data:
            titles = {"xaxis_title": axis.title, "yaxis_title": "gain [base sd]"}
            figures.append(panel(figure, f"{name} over what a picture costs", hovermode="closest", **titles))
            figures[-1].update_xaxes(type="log")
    return figures


def kl_frontier(runs: list[Run]) -> go.Figure | None:
    """Gold over distance from the base, with Gao et al.'s form fitted to each run."""
    figure, judge = go.Figure(), stand_in(runs)
    for k, run in enumerate(runs):
        distance, gains = run.series("kl/sqrt"), judged(run, judge)
        if all(map(math.isnan, distance)) or all(map(math.isnan, gains)):
            continue
        marker, mode = {"color": colour_of(k)}, "lines+markers" if run.is_frontier else "markers"
        figure.add_scatter(x=distance, y=gains, mode=mode, name=run.label, marker=marker, text=captions(run))
        fit = fit_of(run)
        if fit is not None:
            grid = np.linspace(0, max(distance), 80)
            dashed = {"color": colour_of(k), "dash": "dash", "width": 1.5}
            figure.add_scatter(x=grid, y=fit(grid), mode="lines", name="its fit", line=dashed, hoverinfo="skip")
    if not figure.data:
        return None
    return styled(
        figure,
        hovermode="closest",
        xaxis_title="sqrt(KL from the base) [nats^½]",
        yaxis_title=f"gain of {judge} [base sd]",
    )


def diversity_frontier(runs: list[Run]) -> list[go.Figure]:
    """Trained reward and gold over the diversity that is left: how to pay less for the same reward."""
    figures = []
    followed = [name for run in runs for name in ([run.trained] if run.trained else run.others)]
    for name in dict.fromkeys([*followed, JUDGE]):
        figure = go.Figure()
        for k, run in enumerate(runs):
            gains, vendi = run.series(f"eval/{name}/gain"), run.series("pictures/vendi")
            if all(map(math.isnan, gains)) or all(map(math.isnan, vendi)):
                continue
            line, text = {"color": colour_of(k)}, captions(run)
            figure.add_scatter(x=vendi, y=gains, mode="lines+markers", name=run.label, line=line, text=text)
        if figure.data:
            titles = {"xaxis_title": "Vendi score within prompts", "yaxis_title": "gain [base sd]"}
            figures.append(panel(figure, f"{name} over diversity", hovermode="closest", **titles))
    return figures


def fit_of(run: Run) -> Fit | None:
    """Gao et al.'s form fitted to gold over the distance from the base.

    None on fewer than three points off it, of a frontier, which is no course of training, and of controls that have no
    form: best of n has one.
    """
    if run.is_frontier or (run.is_control and not run.is_best_of_n):
        return None
    distance, gains = run.series("kl/sqrt"), run.series(f"eval/{JUDGE}/gain")
    if any(map(math.isnan, [*distance, *gains])) or sum(d > 0 for d in distance) < 3:
        return None
    return fit_reward(distance, gains, "best_of_n" if run.is_best_of_n else "rl")


def treatments(runs: list[Run]) -> dict[str, list[Run]]:
    """Runs that differ in nothing but their seed, by the trained reward and whatever else sets them apart.

    Where some of the runs are finished, those that are not are left out.
    """
    runs = [run for run in runs if run.finished] or runs
    trained = [run for run in runs if not run.is_control]
    keys = [key for key in differences(trained) if key != "seed"]
    groups: dict[str, list[Run]] = {}
    for run in trained:
        groups.setdefault(json.dumps([run.value(key) for key in keys]), []).append(run)
    names = _names([{key: part[0].value(key) for key in [*keys, "train_reward"]} for part in groups.values()], keys)
    found = dict(zip(names, groups.values(), strict=True))
    for run in (run for run in runs if run.is_control):
        found.setdefault(run.control_name, []).append(run)
    return found


def _names(configs: list[dict[str, Any]], keys: list[str]) -> list[str]:
    """Different configurations by as few of these keys as tell them apart: their kinds, then what varies within one."""
    kinds = [key for key in keys if key.endswith("._target_")]
    names = [
        [
            config["train_reward"] or "not known",
            *(choice_of(key.rsplit(".", 1)[0], str(config.get(key))) for key in kinds),
        ]
        for config in configs
    ]
    for key in sorted((key for key in keys if key not in kinds), key=lambda key: key.startswith(UNSAID)):
        for name in {tuple(name) for name in names}:
            same = [k for k, other in enumerate(names) if tuple(other) == name]
            if len({json.dumps(configs[k].get(key)) for k in same}) > 1:
                for k in same:
                    names[k] = [*name, f"{key.rsplit('.', 1)[-1]}={configs[k].get(key)}"]
    return [", ".join(name) for name in names]


def cross_reward_matrix(runs: list[Run]) -> go.Figure | None:
    """Final gain of every reward (columns) under training on each (rows), with its 95% interval."""
    rows = matrix_rows(runs)
    trained, columns = list(rows), list(next(iter(rows.values())))
    if len(trained) < 2 and len(columns) < 3:
        return None
    cells = [list(row.values()) for row in rows.values()]
    heat = go.Heatmap(
        z=[[cell[0] for cell in row] for row in cells],
        x=columns,
        y=trained,
        text=[
            ["" if math.isnan(m) else f"{m:+.2f}<br>{low:+.2f} .. {high:+.2f}" for m, low, high in row] for row in cells
        ],
        texttemplate="%{text}",
        textfont={"size": 11},
        colorscale="RdBu",
        zmid=0,
        hoverongaps=False,
    )
    height = 160 + 60 * len(trained)
    return styled(
        go.Figure(heat), height=height, xaxis_title="evaluated on", yaxis_title="trained on", hovermode="closest"
    )


Cell = tuple[float, float, float]  # mean, low, high


def matrix_rows(runs: list[Run]) -> dict[str, dict[str, Cell]]:
    """By treatment and evaluated reward: of one run the interval over prompts, else a t interval over runs."""
    columns = list(dict.fromkeys(name for run in runs for name in run.rewards))
    return {row: {column: _cell(part, column) for column in columns} for row, part in treatments(runs).items()}


def _cell(runs: list[Run], reward: str) -> Cell:
    """Mean of the reward's final gain and its interval; nan where no run has it."""
    known = [run.evaluations[-1] for run in runs if f"eval/{reward}/gain" in run.evaluations[-1]]
    if not known:
        return (float("nan"),) * 3
    gains = [float(row[f"eval/{reward}/gain"]) for row in known]
    if len(known) == 1:
        return gains[0], float(known[0][f"eval/{reward}/gain_low"]), float(known[0][f"eval/{reward}/gain_high"])
    mean, half = float(np.mean(gains)), t_quantile(len(gains) - 1) * float(np.std(gains, ddof=1)) / len(gains) ** 0.5
    return mean, mean - half, mean + half


HEALTH = {
    "critic/explained_variance": "critic: explained variance",
    "policy/clip_fraction": "policy: clip fraction",
    "policy/grad_norm": "policy: gradient norm",
    "neurons/dormant_0": "critic: dormant neurons, share at tau 0",
}
LOOKS = {
    "pictures/vendi": "Vendi score within prompts",
    "pictures/drift": "drift from the base [1 - cos]",
    "pictures/saturation": "saturation",
    "pictures/edge_density": "edge density",
}


def small_multiples(runs: list[Run], keys: dict[str, str], kind: str) -> list[go.Figure]:
    """A figure for each key, a line for each run that shares the axis of the first."""
    figures, course = [], [run for run in runs if not run.is_frontier] or runs
    shared = axis_of(course[0], kind)
    for key, title in keys.items():
        if not any(key in row for run in runs for row in _rows(run, kind)[:1]):
            continue
        figure = go.Figure()
        for k, run in enumerate(runs):
            if axis_of(run, kind) is not shared:
                continue  # a frontier is no course of training, and has an axis of its own
            rows = _rows(run, kind)
            line = {"color": colour_of(k), "width": 1.5}
            x = shown_places(run) if rows is run.evaluations else run.series(shared.key, rows)
            figure.add_scatter(x=x, y=run.series(key, rows), name=run.label, line=line)
        figures.append(panel(figure, title, xaxis_title=shared.title))
        if shared.log:
            figures[-1].update_xaxes(type="log")
    return figures


def axis_of(run: Run, kind: str) -> Axis:
    """Of the rows of this kind."""
    return run.axis_of_iterations if kind == "iteration" else run.axis


def panel(figure: go.Figure, title: str, **layout) -> go.Figure:
    """One of several that stand side by side where there is room, each with its title."""
    return styled(figure, height=280, title={"text": title, "font": {"size": 14}}, **layout)


def _rows(run: Run, kind: str) -> list:
    return run.iterations if kind == "iteration" else run.evaluations


BY_STEP = {
    "policy/ratio_std": "standard deviation of the ratio",
    "policy/clip_fraction": "clip fraction",
    "policy/grad_norm": "gradient norm before clipping",
    "critic/explained_variance": "critic: explained variance",
}


def health_by_step(run: Run) -> list[go.Figure]:
    """Optimisation health at each denoising step, over training; a figure each."""
    figures = []
    places = run.series(run.axis_of_iterations.key, run.iterations)
    for key, title in BY_STEP.items():
        names = {name for row in run.iterations for name in row if name.startswith(f"{key}/step_")}
        if not names:
            continue
        steps = 1 + max(int(name.rpartition("_")[2]) for name in names)  # an iteration need not have trained all
        z = [run.series(f"{key}/step_{k}", run.iterations) for k in range(steps)]
        bar = {"thickness": 8}
        heat = go.Heatmap(z=z, x=places, y=list(range(steps)), colorscale="Viridis", colorbar=bar)
        figure = go.Figure(heat).update_yaxes(autorange="reversed", title_text="denoising step")
        figures.append(panel(figure, title, hovermode="closest", xaxis_title=run.axis_of_iterations.title))
    return figures


def kl_profile(run: Run) -> go.Figure | None:
    """Which denoising steps the policy has moved, at each evaluation."""
    steps = sum(key.startswith("kl/step_") for key in run.evaluations[-1])
    if not steps:
        return None
    z = [[row[f"kl/step_{k}"] for row in run.evaluations] for k in range(steps)]
    heat = go.Heatmap(z=z, x=shown_places(run), y=list(range(steps)), colorscale="Viridis", colorbar={"title": "nats"})
    figure = go.Figure(heat)
    figure.update_yaxes(autorange="reversed")
    return styled(figure, xaxis_title=run.axis.title, yaxis_title="denoising step", hovermode="closest")
