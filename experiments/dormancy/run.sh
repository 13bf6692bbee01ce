#!/usr/bin/env bash
# Critics, gradients and probes, five seeds. What is done is not repeated; a run that fails stops no other.
set -uo pipefail
cd "$(dirname "$0")/../.."
OUT=${OUT:-multirun/dormancy}
failed=0
x0="critic=image_tower_score critic_epochs=10 normaliser.buffer=8"
for seed in ${SEEDS:-0 1 2 3 4}; do
  for arms in "$x0 critic.activation=relu,none critic_gradient_factor=1.0,1.52587890625e-05" \
    "$x0 critic.activation=relu,none neuron_probe=8 neuron_probe_scattered=true" \
    "+preset=official reset=none"; do
    # shellcheck disable=SC2086
    ${PYTHON:-.venv/bin/python} -m src.run -m +experiment=tdpo_hps $arms seed="$seed" \
      iterations=40 lr_factor=10 lr_ramp=60 evaluation.every=40 hydra.sweep.dir="$OUT" "$@" || failed=1
  done
done
exit $failed
