"""The W&B dashboard as code: a definition that W&B's own package accepts, of metrics that runs do log."""

import pytest
import wandb_workspaces.workspaces as ws
from wandb_workspaces.workspaces import internal

from src.dashboard import main, make_report, make_workspace, sections, suite_rewards
from src.errors import UserError
from src.metrics.glossary import lookup
from tests.forked import call_forked
from tests.wandb_server import wandb_server

REWARDS, JUDGES = ["hps", "pickscore"], ["gold"]


def metrics_of(panel) -> list[str]:
    """What a panel draws, the x-axis included."""
    named = [*getattr(panel, "y", []), *getattr(panel, "metrics", []), getattr(panel, "x", None)]
    return [metric if isinstance(metric, str) else metric.name for metric in named if metric is not None]


def test_every_panel_shows_what_runs_log():
    named = [m for panels in sections(REWARDS, JUDGES).values() for panel in panels for m in metrics_of(panel)]
    assert {"eval/gold/gain", "held_out/pickscore/gain", "kl/sqrt", "reset/share", "watch/signal"} <= set(named)
    for metric in named:
        lookup(metric.removesuffix(".last"))  # W&B's name of a summary value


def test_the_suites_rewards_are_found():
    rewards, judges = suite_rewards("mini")
    assert "hps" in rewards and "gold" in judges and "gold" not in rewards


def test_the_definition_survives_wandbs_own_schema(tmp_path):
    main(["--entity", "team", "--out", str(tmp_path / "workspace.json")])
    view = internal.View.model_validate_json((tmp_path / "workspace.json").read_text())
    again = ws.Workspace._from_model(view)
    assert [section.name for section in again.sections] == list(sections(REWARDS, JUDGES))
    assert (again.entity, again.project) == ("team", "overopt")
    assert again.settings.x_axis == "reward_queries"
    titles = [panel.title for section in again.sections for panel in section.panels]
    assert "gold: KL frontier" in titles and "gold, by trained reward" in titles
    bars = [panel for section in again.sections for panel in section.panels if "by trained reward" in panel.title]
    assert {bar.groupby.name for bar in bars} == {"train_reward"}  # +sweeps=reward_matrix has one experiment's name


def test_workspace_and_report_hold_the_same_panels():
    panels = sections(REWARDS, JUDGES)
    workspace, report = make_workspace("team", "p", panels), make_report("team", "p", panels)
    grids = [block for block in report.blocks if hasattr(block, "panels")]
    assert [len(grid.panels) for grid in grids] == [len(section.panels) for section in workspace.sections]
    assert all(panel._to_model() for grid in grids for panel in grid.panels)


@pytest.mark.parametrize("report", [False, True])
def test_a_server_takes_it(report, monkeypatch, tmp_path):
    """As W&B's own package sends it, to a server on this machine that keeps it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    with wandb_server() as server:
        for key, value in server.environment().items():
            monkeypatch.setenv(key, value)
        done = call_forked(main, ["--entity", "team", *(["--report"] if report else [])])
    assert done.returncode == 0, done.stderr
    assert f"dashboard: {server.url}/team/overopt" in done.stdout and not server.unknown
    (view,) = server.views
    assert (view["entityName"], view["projectName"]) == ("team", "overopt")
    assert view["displayName"] == "Reward overoptimization" and view["type"] == ("runs" if report else "project-view")
    shown = view["spec"]
    assert all(
        title in shown for title in ("gold: KL frontier", "Where the reward was hacked worst", *sections([], []))
    )


def test_a_server_that_does_not_take_it(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    with wandb_server() as server:
        for key, value in server.environment().items():
            monkeypatch.setenv(key, value)
        server.refused.add("UpsertView2")
        done = call_forked(main, ["--entity", "team"])
    assert done.returncode == 1 and "UserError: W&B would not take it (" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--entity is missing"),
        (["--entity", "team"], "no W&B key"),
        (["--entity", "team", "--report", "--out", "x.json"], "--out is for the workspace"),
        (["--entity", "team", "--out", "/nowhere/x.json"], "/nowhere/x.json cannot be written"),
    ],
)
def test_what_is_missing_is_told(arguments, message, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))  # no key in netrc
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(UserError, match=message):
        main(arguments)
