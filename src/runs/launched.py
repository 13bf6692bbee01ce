"""What the environment says of how this process was started, as Lightning reads it behind our back.

torchrun and srun tell every process its place among all by variables; others set the same ones, or leave them behind.
"""

import os
from typing import Any

from omegaconf import OmegaConf

from src.errors import UserError
from src.runs.folder import find_run, read_config

RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")  # in the order in which Lightning looks
COUNTS = ("WORLD_SIZE", "SLURM_NTASKS")
NUMBERS = (*RANKS, *COUNTS, "NODE_RANK", "GROUP_RANK", "MASTER_PORT", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_JOB_ID")
OPTIONS = "PL_TRAINER_"  # what Lightning takes defaults of its Trainer's options from
INTERACTIVE = ("bash", "interactive")  # names of Slurm's jobs in which a command is one process, whatever SLURM_ says


def is_one_process(trainer: Any) -> bool:
    """Whether these options of the trainer are those of a run in one process."""
    devices = trainer.get("devices", 1)
    several = len(devices) > 1 if OmegaConf.is_list(devices) or isinstance(devices, list) else devices not in (1, "1")
    return not several and trainer.get("num_nodes", 1) == 1


def stored_trainer(resume: str) -> Any:
    """The options of the trainer that a run to resume was started with."""
    return read_config(find_run(resume)).get("trainer") or {}


def check_environment(trainer: Any) -> None:
    """Raises UserError where the environment belongs to another way of starting than the trainer's options."""
    for key in NUMBERS:
        if key in os.environ and not os.environ[key].isdecimal():
            raise UserError(f"{key}={os.environ[key]} in the environment is no number: unset it.")
    for key in (key for key in os.environ if key.startswith(OPTIONS)):
        option = key.removeprefix(OPTIONS).lower()
        raise UserError(f"{key} in the environment would change the trainer unseen: unset it, or use trainer.{option}=")
    if not is_one_process(trainer):
        return
    interactive = os.environ.get("SLURM_JOB_NAME") in INTERACTIVE
    for key, alone in [(key, 0) for key in RANKS] + [(key, 1) for key in COUNTS]:
        if int(os.environ.get(key, alone)) > alone and not (interactive and key.startswith("SLURM_")):
            raise UserError(
                f"{key}={os.environ[key]} is set, as where several processes are started, but trainer.devices=1: unset "
                f"it (env -u {key} python -m src.run ...), or give trainer.devices= the number of processes."
            )
