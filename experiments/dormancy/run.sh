#!/usr/bin/env bash
# Critics, gradients and probes, five seeds. What is done is not repeated.
set -euo pipefail
cd "$(dirname "$0")/../.."
OUT=${OUT:-multirun/dormancy}
ours="critic_gradient_factor=1.0,1.52587890625e-05 neuron_probe=1024 neuron_probe_scattered=false"
authors="critic_gradient_factor=1.0 neuron_probe=8 neuron_probe_scattered=true"  # the gradients are none of the probe's
for arms in "$ours" "$authors"; do
  # shellcheck disable=SC2086
  ${PYTHON:-.venv/bin/python} -m src.run -m +experiment=tdpo_hps critic.activation=relu,none seed=0,1,2,3,4 \
    budget=study iterations=40 evaluation.every=40 $arms hydra.sweep.dir="$OUT" "$@"
done
