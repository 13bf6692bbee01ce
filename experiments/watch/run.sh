#!/usr/bin/env bash
# DDPO and TDPO-R on each reward, two seeds. What is done is not repeated.
set -euo pipefail
cd "$(dirname "$0")/../.."
for experiment in ddpo_hps tdpo_r_hps; do
  ${PYTHON:-.venv/bin/python} -m src.run +experiment=$experiment +sweeps=reward_matrix seed=0,1 \
    iterations=120 evaluation.every=10 hydra.sweep.dir="${OUT:-multirun/watch}/$experiment" "$@"
done
