"""Weights that are kept beside a run's last: by the watch, and of every evaluation."""

import os
from pathlib import Path
from typing import Any

from src.files import make_folder, remove, write_json
from src.learner import Learner


def keep_weights(folder: Path, learner: Learner, **at: Any) -> None:
    """Writes the policy's weights, and their average where there is one, and at.json: when that was.

    The folder is there whole, or as it was before. Raises UserError where there is no room.
    """
    partial, old = (folder.with_name(f"{folder.name}.{end}") for end in ("partial", "old"))
    for left in (partial, old):
        remove(left)
    make_folder(partial)
    learner.policy.save(partial, learner.averaged)
    write_json(partial / "at.json", {"iteration": learner.iteration, **at})
    if os.path.lexists(folder):
        folder.rename(old)
    partial.rename(folder)
    remove(old)
