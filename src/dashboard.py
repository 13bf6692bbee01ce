"""A W&B project's dashboard as code: `python -m src.dashboard --entity TEAM` (package extra: dashboards).

Makes a workspace view of the project that runs log to: reward curves of all rewards with the judges, the KL frontier,
the watch, the cross-reward matrix, pictures, neurons and resets, health of the optimisation. `--report` makes a W&B
report of the same panels; `--out FILE` writes the workspace's definition instead, without an account or a network.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import wandb.errors
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from wandb.sdk.lib.service.service_connection import WandbApiFailedError

import src.config  # noqa: F401  (registers the schema)
from src.errors import UserError, first_line
from src.files import reason, user_path, write_text
from src.loggers.wandb import has_key
from src.screen import survive_its_end

try:
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws
except ImportError:  # an extra
    ws = None  # type: ignore[assignment]

CONF = str(Path(__file__).parents[1] / "conf")
X = "reward_queries"
GAIN = "gain over the base [base sd]"


def suite_rewards(suite: str) -> tuple[list[str], list[str]]:
    """Names of a suite's rewards and of its judges."""
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg: Any = OmegaConf.to_container(compose("config", [f"suite={suite}"]).suite)
    return list(cfg["rewards"]), list(cfg["judges"] or {})


def sections(rewards: list[str], judges: list[str]) -> dict[str, list]:
    """Panels by section; every metric named here is one that runs log (a test holds them to the glossary)."""
    every = [*rewards, *judges]
    line = lambda title, keys, x=X, **more: wr.LinePlot(title=title, x=x, y=keys, **more)  # noqa: E731
    frontier = {"title_x": "sqrt(KL from the base) [nats^1/2]", "title_y": GAIN}
    return {
        "Rewards": [
            line("Gain on the training prompts", [f"eval/{name}/gain" for name in every], title_y=GAIN),
            line("Gain on held-out prompts", [f"held_out/{name}/gain" for name in every], title_y=GAIN),
            line("Training reward", [f"reward/{name}/mean" for name in rewards], title_y="raw reward"),
        ],
        "Overoptimization": [
            *(line(f"{name}: KL frontier", [f"eval/{name}/gain"], "kl/sqrt", **frontier) for name in judges or rewards),
            line("Below its peak", [f"eval/{name}/below_peak" for name in every], title_y="base sd"),
            line("Trained reward minus this one", [f"eval/{name}/gap" for name in every], title_y="base sd"),
            line("Watch", ["watch/signal", "watch/below_peak"]),
            line("Watch: alarm", ["watch/alarm"]),
        ],
        "Cross-reward matrix": [
            wr.BarPlot(
                title=f"{name}, by trained reward",
                metrics=[f"eval/{name}/gain.last"],
                groupby=wr.Config("train_reward"),
                groupby_aggfunc="mean",
                groupby_rangefunc="stderr",
                title_x=GAIN,
            )
            for name in every
        ],
        "Pictures": [
            wr.MediaBrowser(title="The same prompts and seeds", media_keys=["samples"], num_columns=1),
            wr.MediaBrowser(title="Where the reward was hacked worst", media_keys=["hacks"], num_columns=1),
            line("Vendi score within prompts", ["pictures/vendi"]),
            line("Drift from the base", ["pictures/drift"]),
            line("Saturation", ["pictures/saturation"]),
            line("Edge density", ["pictures/edge_density"]),
        ],
        "Critic and resets": [
            line("Dormant neurons", ["neurons/dormant_0", "neurons/dormant_0.025", "neurons/dormant_0.1"]),
            line("Share of neurons reset", ["reset/share", "reset/lora_share"]),
            line("Explained variance", ["critic/explained_variance"]),
            line("Critic loss", ["critic/loss"]),
        ],
        "Optimisation": [
            line("KL from the base", ["kl/trajectory"], title_y="nats"),
            line("Clip fraction", ["policy/clip_fraction"]),
            line("Importance ratio: standard deviation", ["policy/ratio_std"]),
            line("Gradient norm before clipping", ["policy/grad_norm"]),
        ],
    }


def make_workspace(entity: str, project: str, panels: dict[str, list]) -> Any:
    """The saved view of a project: the panels by section, runs grouped by experiment and trained reward."""
    return ws.Workspace(
        name="Reward overoptimization",
        entity=entity,
        project=project,
        sections=[ws.Section(name=name, panels=content, is_open=True) for name, content in panels.items()],
        settings=ws.WorkspaceSettings(x_axis=X, max_runs=20),
        runset_settings=ws.RunsetSettings(
            groupby=[ws.Config("name"), ws.Config("train_reward")],
            pinned_columns=["config:train_reward", "config:seed"],
        ),
    )


def make_report(entity: str, project: str, panels: dict[str, list]) -> Any:
    """A W&B report of the same panels, a heading for each section."""
    blocks: list = [wr.TableOfContents()]
    for name, content in panels.items():
        runs = wr.Runset(entity=entity, project=project, name="runs")
        blocks += [wr.H1(text=name), wr.PanelGrid(runsets=[runs], panels=content)]
    title = "Reward overoptimization"
    return wr.Report(project=project, entity=entity, title=title, blocks=blocks, width="fluid")


def main(arguments: list[str] | None = None) -> None:
    """Publishes the panels, or writes them to a file.

    Raises UserError where a package, the entity or W&B is missing.
    """
    parser = argparse.ArgumentParser(prog="python -m src.dashboard", description=__doc__.splitlines()[0])
    parser.add_argument("--entity", help="W&B user or team that the project belongs to")
    parser.add_argument("--project", default="overopt")
    suites = sorted(file.stem for file in Path(CONF, "suite").glob("*.yaml"))
    parser.add_argument("--suite", default="mini", choices=suites, help="whose rewards are shown")
    parser.add_argument("--report", action="store_true", help="a W&B report instead of a workspace view")
    parser.add_argument("--out", type=user_path, help="write the workspace's definition to this file; contact nobody")
    options = parser.parse_args(arguments)
    if ws is None:
        raise UserError("dashboards need the package wandb-workspaces: pip install 'overopt[dashboards]'.")
    if not options.entity:
        raise UserError("--entity is missing: the W&B user or team that the project belongs to.")
    if options.out and options.report:
        raise UserError("--out is for the workspace: W&B's server has a part in a report's definition.")
    if not options.out and not has_key():
        raise UserError("no W&B key: set WANDB_API_KEY or run `wandb login`, or write the definition with --out FILE.")
    make = make_report if options.report else make_workspace
    made = make(options.entity, options.project, sections(*suite_rewards(options.suite)))
    if options.out:
        try:
            write_text(options.out, made._to_model().model_dump_json(by_alias=True, indent=2))
        except OSError as error:
            raise UserError(f"--out {options.out} cannot be written: {reason(options.out, error)}.") from error
        print(f"definition: {options.out}")
        return
    try:
        print(f"dashboard: {made.save().url}")
    except (wandb.errors.Error, WandbApiFailedError, OSError, ValueError) as error:
        raise UserError(f"W&B would not take it ({first_line(error)}): look at the key and at --entity.") from error


if __name__ == "__main__":
    survive_its_end()
    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
