"""Experiments on reward overoptimization in diffusion-model alignment."""

import os

if "OMP_WAIT_POLICY" not in os.environ:
    # Threads that wait give their core away soon: with a neighbour on the machine a step then takes half the time, and
    # alone it takes as long. Read by libgomp when torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # of every command: it warns of packages that nobody needs
