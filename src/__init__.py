"""Experiments on reward overoptimization in diffusion-model alignment."""

import os

from src.process import keep_freed_memory, set_spin_count

set_spin_count()
keep_freed_memory()
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # of every command: it warns of packages that nobody needs
