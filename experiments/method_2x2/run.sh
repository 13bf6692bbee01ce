#!/usr/bin/env bash
# Critic or optimizer steps, seven arms, five seeds. What is done is not repeated; a run that fails stops no other.
set -uo pipefail
cd "$(dirname "$0")/../.."
OUT=${OUT:-multirun/method_2x2}
failed=0
for seed in ${SEEDS:-0 1 2 3 4}; do
  for arms in "algorithm=ddpo,tdpo algorithm.schedule=trajectory,timestep" \
    "algorithm=ddpo algorithm.schedule=trajectory algorithm.samples_per_update=8 optimizer.lr=7e-6" \
    "algorithm=tdpo algorithm.schedule=timestep critic=image_tower critic_epochs=1" \
    "algorithm=tdpo algorithm.schedule=timestep critic=image_tower_x0 critic_epochs=10"; do
    case $arms in *critic=*) critic= ;; *) critic="critic=image_tower_score critic_epochs=10" ;; esac
    # shellcheck disable=SC2086
    ${PYTHON:-.venv/bin/python} -m src.run -m +experiment=tdpo_hps $critic $arms seed="$seed" normaliser.buffer=8 \
      iterations=60 lr_factor=10 lr_ramp=60 evaluation.every=5 hydra.sweep.dir="$OUT" "$@" || failed=1
  done
done
exit $failed
