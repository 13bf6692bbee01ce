"""Environments of other versions of the libraries, for what is compared with them."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def new_environment(folder: Path, packages: Sequence[str]) -> Path:
    """The interpreter of a new virtual environment with these packages and this one's torch.

    Raises CalledProcessError where pip cannot install them.
    """
    import torch

    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    wanted = [f"torch=={torch.__version__.split('+')[0]}", *packages]
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *wanted], check=True)
    return python
