#!/usr/bin/env bash
# {no critic, critic} x {updates per trajectory, per timestep}, five seeds. What is done is not repeated.
set -euo pipefail
cd "$(dirname "$0")/../.."
${PYTHON:-.venv/bin/python} -m src.run +experiment=tdpo_hps +sweeps=method_2x2 seed=0,1,2,3,4 \
  iterations=60 lr_factor=10 lr_ramp=60 evaluation.every=10 hydra.sweep.dir="${OUT:-multirun/method_2x2}" "$@"
