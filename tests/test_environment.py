"""Variables that libraries read behind our back, of several processes, Slurm and W&B: a sentence where they do harm."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment
from omegaconf import OmegaConf

from src.errors import UserError
from src.loggers.wandb import make_wandb_logger
from src.loggers.wandb_files import records, sessions
from src.runs.launched import check_environment, is_one_process
from src.tasks.building import trainer_of
from tests.forked import call_forked

ONE, TWO = OmegaConf.create({"devices": 1}), OmegaConf.create({"devices": 2})
SLURM = {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_ID": "77"}


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    for key in [key for key in os.environ if key.startswith(("SLURM", "PL_", "RANK", "LOCAL_RANK", "WORLD_SIZE"))]:
        monkeypatch.delenv(key)


@pytest.mark.parametrize(
    ("given", "trainer", "sentence"),
    [
        ({"RANK": "1"}, ONE, "RANK=1 is set, as where several processes are started, but trainer.devices=1: unset it"),
        ({"LOCAL_RANK": "3"}, ONE, "LOCAL_RANK=3 is set"),
        ({"WORLD_SIZE": "2"}, ONE, "WORLD_SIZE=2 is set"),
        ({"SLURM_NTASKS": "2"}, ONE, "SLURM_NTASKS=2 is set"),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "1"}, ONE, "SLURM_PROCID=1 is set"),
        ({"RANK": "first"}, ONE, "RANK=first in the environment is no number: unset it."),
        ({"MASTER_PORT": "auto"}, TWO, "MASTER_PORT=auto in the environment is no number"),
        ({"PL_TRAINER_FAST_DEV_RUN": "1"}, ONE, "PL_TRAINER_FAST_DEV_RUN in the environment would change the trainer"),
    ],
)
def test_an_environment_that_does_not_fit_is_refused(given, trainer, sentence, monkeypatch):
    for key, value in given.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(UserError, match=sentence):
        check_environment(trainer)


@pytest.mark.parametrize(
    ("given", "trainer"),
    [
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}, ONE),  # torchrun --nproc-per-node 1
        ({"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}, TWO),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "interactive"}, ONE),  # salloc
        (SLURM, ONE),
    ],
)
def test_an_environment_that_fits_is_not(given, trainer, monkeypatch):
    for key, value in given.items():
        monkeypatch.setenv(key, value)
    check_environment(trainer)


def test_how_many_processes_a_run_has():
    one = [{}, {"devices": 1}, {"devices": "1"}, {"devices": [3]}]
    assert all(is_one_process(options) and is_one_process(OmegaConf.create(options)) for options in one)
    several = [{"devices": 2}, {"devices": "auto"}, {"devices": -1}, {"devices": [0, 1]}, {"num_nodes": 2}]
    assert not any(is_one_process(options) or is_one_process(OmegaConf.create(options)) for options in several)


def test_slurm_queues_nothing_again_and_has_no_checkpoints_of_its_own(tmp_path, monkeypatch):
    """Lightning's, at a signal, are of the middle of an iteration, and would be loaded by whatever runs there next."""
    for key, value in SLURM.items():
        monkeypatch.setenv(key, value)
    options = {"_target_": "lightning.Trainer", "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    one = trainer_of({"trainer": options | {"devices": 1}, "run_dir": str(tmp_path)})
    assert isinstance(one._accelerator_connector.cluster_environment, LightningEnvironment)
    assert one.default_root_dir == str(tmp_path)
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "2")
    two = trainer_of({"trainer": options | {"devices": 2}, "run_dir": str(tmp_path)})
    environment = two._accelerator_connector.cluster_environment
    assert isinstance(environment, SLURMEnvironment) and not environment.auto_requeue


# --------------------------------------------------------------------------------------------------------------- W&B


def begin(folder: Path, options: dict[str, Any]) -> None:
    """A run of W&B's, with a table; prints what became of it."""
    try:
        given = {"project": "p", "mode": "auto", "group": "g", "tags": [], "config": {}} | options
        logger = make_wandb_logger(folder, **given)
    except UserError as error:
        print(f"error: {error}")
        return
    picture = wandb.Image(np.zeros((8, 8, 3), np.uint8), file_type="jpg")
    logger.add_media({"table": wandb.Table(["a"], [[picture]])})
    logger.log_metrics({"kind": "iteration", "iteration": 1})
    print(logger.experiment.settings.mode, logger.experiment.id)
    wandb.finish()


@pytest.fixture
def no_account(tmp_path, monkeypatch):
    for key in [key for key in os.environ if key.startswith("WANDB")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


REFUSED = {
    "WANDB_MODE": ({"WANDB_MODE": "foo"}, {}, "WANDB_MODE=foo is no mode of W&B: choose online, offline or disabled."),
    "logger.mode": ({}, {"mode": "foo"}, "logger.mode=foo is no mode of W&B"),
    "project": ({}, {"project": "my/project#1"}, "Invalid project name 'my/project#1'"),
    "key": ({"WANDB_API_KEY": "short"}, {}, "W&B's key cannot be used: WANDB_API_KEY invalid"),
    "address": ({"WANDB_BASE_URL": "foo"}, {}, "settings: Input should be a valid URL"),
    "timeout": ({"WANDB_INIT_TIMEOUT": "soon"}, {}, "init_timeout: Input should be a valid number"),
    "tags": ({"WANDB_TAGS": "t" * 70}, {}, "run_tags: Value error, Tag"),
    "fork": ({"WANDB_FORK_FROM": "x?_step=3"}, {}, "are mutually exclusive"),
    "setting": ({"WANDB_CONSOLE": "bad"}, {}, "console: Input should be"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_wandb_does_not_take_is_told(case, tmp_path, no_account, monkeypatch):
    given, options, sentence = REFUSED[case]
    for key, value in given.items():
        monkeypatch.setenv(key, value)
    done = call_forked(begin, tmp_path, options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("error: ") and sentence in done.stdout and done.stdout.count("\n") == 1


OTHER_RUN = {"WANDB_RUN_ID": "another", "WANDB_RESUME": "must", "WANDB_DIR": "/nowhere", "WANDB_NAME": "x"}
OTHER_PLACE = {"WANDB_PROJECT": "another", "WANDB_RUN_GROUP": "another", "WANDB_CONFIG_DIR": "/proc/x"}
TAKEN = {
    "another mode's name": ({"WANDB_MODE": "dryrun"}, "offline"),
    "switched off": ({"WANDB_DISABLED": "true"}, "disabled"),
    "a service that has ended": ({"WANDB_SERVICE": "3-1234-unix-/tmp/nowhere"} | OTHER_RUN, "offline"),
    "a service that never was": ({"WANDB_SERVICE": "garbage"} | OTHER_PLACE, "offline"),
    "a home where nothing can be made": ({"HOME": "/dev/null/home"}, "offline"),
}


@pytest.mark.parametrize("case", TAKEN)
def test_what_changes_nothing(case, tmp_path, no_account, monkeypatch):
    """The run has its own id, folder and mode all the same; and all that W&B writes lies in the run folder."""
    given, mode = TAKEN[case]
    for key, value in given.items():
        monkeypatch.setenv(key, value)
    folder = tmp_path / "run"
    folder.mkdir()
    done = call_forked(begin, folder, {"tags": ["t" * 70], "group": "g/" * 100})
    assert done.returncode == 0 and "Traceback" not in done.stderr and "INFO" not in done.stderr, done.stderr
    said, name = done.stdout.split()
    assert said == mode
    if mode == "offline":
        assert (folder / "wandb_id.txt").read_text() == name
        (session,) = sessions(folder)
        assert list(session.rows().values()) == [("iteration", 1)]
        run = next(record.run for _, record in records(session.file) if record.WhichOneof("record_type") == "run")
        assert (run.run_id, run.project, run.run_group, run.display_name) == (name, "p", ("g/" * 100)[:128], "run")
        assert run.tags == ["t" * 64]
        assert list((folder / "wandb" / "artifacts" / "staging").iterdir())
        assert not list((tmp_path / "home").rglob("*staging*"))
