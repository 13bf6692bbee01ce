#!/usr/bin/env bash
# DDPO and TDPO-R on each reward, two seeds; DDPO on hps is experiments/overoptimization. What is done is not repeated.
set -euo pipefail
cd "$(dirname "$0")/../.."
OUT=${OUT:-multirun/watch}
job() { ${PYTHON:-.venv/bin/python} -m src.run -m budget=study evaluation.every=10 "$@"; }
for seed in 0 1; do
  job +experiment=ddpo_hps train_reward=pickscore,imagereward,aesthetic seed=$seed hydra.sweep.dir="$OUT/ddpo" "$@"
  job +experiment=tdpo_r_hps train_reward=hps,pickscore,imagereward,aesthetic seed=$seed hydra.sweep.dir="$OUT/tdpo_r" "$@"
done
