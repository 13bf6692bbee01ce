#!/usr/bin/env bash
# Critics, gradients and probes, five seeds. What is done is not repeated.
set -euo pipefail
cd "$(dirname "$0")/../.."
OUT=${OUT:-multirun/dormancy}
for probe in "neuron_probe=1024 neuron_probe_scattered=false" "neuron_probe=8 neuron_probe_scattered=true"; do
  # shellcheck disable=SC2086
  ${PYTHON:-.venv/bin/python} -m src.run -m +experiment=tdpo_hps critic.activation=relu,none critic_gradient_factor=1.0,1.52587890625e-05 \
    seed=0,1,2,3,4 iterations=50 evaluation.every=50 $probe hydra.sweep.dir="$OUT" "$@"
done
