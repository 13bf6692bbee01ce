#!/usr/bin/env bash
# DDPO and TDPO-R on each reward, two seeds, and four runs that are not pressed.
# What is done is not repeated; a run that fails stops no other.
set -uo pipefail
cd "$(dirname "$0")/../.."
OUT=${OUT:-multirun/watch}
failed=0
job() { ${PYTHON:-.venv/bin/python} -m src.run -m evaluation.every=10 "$@" || failed=1; }
job +experiment=tdpo_r_hps train_reward=hps,pickscore,imagereward,aesthetic seed=0 hydra.sweep.dir="$OUT/quiet" "$@"
for seed in 0 1; do
  job +experiment=ddpo_hps train_reward=hps,pickscore,imagereward,aesthetic seed=$seed budget=study hydra.sweep.dir="$OUT/ddpo" "$@"
  job +experiment=tdpo_r_hps train_reward=hps,pickscore,imagereward,aesthetic seed=$seed budget=study hydra.sweep.dir="$OUT/tdpo_r" "$@"
done
exit $failed
