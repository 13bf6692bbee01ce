#!/usr/bin/env bash
# Reset strategies by ratio, five seeds. What is done is not repeated.
set -euo pipefail
cd "$(dirname "$0")/../.."
OUT=${OUT:-multirun/reset_ablation}
# full and none have no ratio; random of all is full. Seeds come first, so that an unfinished study has whole pairs
for seed in ${SEEDS:-0 1 2 3 4}; do
  for arms in "reset=none,full" "reset=active,dormant reset.ratio=0.1,0.25,0.5,1.0" "reset=random reset.ratio=0.1,0.25,0.5"; do
    # shellcheck disable=SC2086
    ${PYTHON:-.venv/bin/python} -m src.run -m +experiment=tdpo_r_hps $arms seed=$seed iterations=60 lr_factor=10 lr_ramp=60 evaluation.every=10 \
      hydra.sweep.dir="$OUT" "$@"
  done
done
