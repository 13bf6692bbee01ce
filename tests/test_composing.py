"""What Hydra cannot compose is told by us: every misspelt, missing or doubled key of every group, and broken files."""

import pytest
from hydra import compose, initialize_config_dir

from src.composing import told, unknown
from src.errors import UserError
from tests.conftest import ROOT

FAULTS = {
    "iteratons=3": "iteratons is not a key of the configuration: did you mean iterations?",
    "rest=active": "rest is not a key of the configuration: did you mean reset?",
    "experment=ddpo": "did you mean +experiment?",
    "foo=1": "foo is not a key of the configuration: --help lists the groups, and --cfg job every key.",
    "study=critic": "study is chosen with a plus: +study=critic.",
    "+reset=active": "reset would be chosen twice: write reset=NAME, without a plus.",
    "++reset=active": "a group is chosen without ++: write reset=active.",
    "+seed=3": "seed is there already: write seed=3, without the plus.",
    "~sed": "did you mean seed?",
    "~reset.every=3": "~reset.every=3 takes nothing away",
    "~experiment": "experiment has not been chosen",
    "reset@foo=active": "reset@foo is no group: did you mean reset?",
    "rest@foo=active": "did you mean reset?",
    "reset.ratoi=1": "reset.ratoi is not an option of reset=none: did you mean ratio?",
    "prompts.path=x": "prompts.path is not an option of prompts=simple_animals: prompts=file has path.",
    "reset=own reset.every=1": "conf/reset/own.yaml does not set: write ++reset.every=VALUE, or begin that file with "
    "defaults: [active, _self_], which sets it.",
    "reset=untold reset.every=1": "conf/reset/untold.yaml has no _target_",
    "regulariser.betas=1": "has beta.",
    "suite.nmae=1": "suite.nmae is not an option of suite=mini: did you mean name?",
    "suite.rewards.hsp.path=x": "suite.rewards.hsp is not an option of suite.rewards: did you mean hps?",
    "reset.every.x=1": "reset.every has no options of its own: did you mean reset.every=VALUE?",
    "trainer.gradient_clip_val=1": "trainer.gradient_clip_val is an option of lightning.Trainer that",
    "optimizer.lrr=1": "optimizer.lrr is not an option of optimizer: did you mean lr?",
    "hydra.launcher.n_jobs=2": "hydra/launcher=joblib has n_jobs.",
    "hydra/lancher=joblib": "did you mean hydra/launcher?",
    "code.n=3": "code.n sets an option of what is not chosen: it needs +experiment=code.",
    "train_weights.x=1": "did you mean train_weights=VALUE?",
    "+experiment=misspelt": "conf/experiment/misspelt.yaml: iteratons is not a key of the configuration: did you mean",
    "+experiment=mistyped": "conf/experiment/mistyped.yaml: iterations: it takes a whole number.",
    "+experiment=torn": "experiment/torn.yaml, line 2, is no YAML: expected the node content",
    "+experiment=relative": "in a file of conf/ another group begins with a slash: override /reset: NAME.",
}
FILES = {
    "reset/own": "_target_: src.resets.active.ActiveReset\nshrink: 1\n",
    "reset/untold": "ratio: 1\n",
    "experiment/misspelt": "# @package _global_\niteratons: 3\n",
    "experiment/mistyped": "# @package _global_\niterations: many\n",
    "experiment/torn": "iterations: [\n",
    "experiment/relative": "# @package _global_\ndefaults: [{reset: active}]\n",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> str:
    """A folder that is searched for groups beside conf/, as an override."""
    folder = tmp_path_factory.mktemp("conf")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / f"{name}.yaml").write_text(text)
    return f"hydra.searchpath=[file://.,file://{folder}]"


@pytest.mark.parametrize("command", FAULTS)
def test_what_cannot_be_composed_is_told_in_one_sentence(command, files):
    arguments = [*command.split(), files]
    with (
        pytest.raises(UserError) as error,
        told(arguments),
        initialize_config_dir(str(ROOT / "conf"), version_base="1.3"),
    ):
        compose("config", arguments)
    assert FAULTS[command] in str(error.value) and "\n" not in str(error.value)


def test_options_of_arms_of_a_sweep(files):
    of = lambda *arguments: unknown(arguments[-1].split("=")[0], ["-m", *arguments, files])  # noqa: E731
    assert "reset.shrink is an option of reset=own and not of reset=none: give arms" in of(
        "reset=none,own", "reset.shrink=0.3"
    )
    assert "written ++reset.shrink=VALUE" in of("reset=own,own", "reset.shrink=0.3")
    assert "reset.ratoi is not an option of reset=none: did you mean" in of("reset=none,active", "reset.ratoi=0.3")
