#!/usr/bin/env bash
# Somebody else's checkpoints: TRL 0.23.1 trains the miniature base, in an environment of its own; then they are evaluated.
set -euo pipefail
cd "$(dirname "$0")/../.."
OUT=${OUT:-multirun/trl_checkpoints}
HERE=experiments/trl_checkpoints
if [ ! -d "$OUT/trl/checkpoints" ]; then
  python3 -m venv "$OUT/venv"
  "$OUT/venv/bin/pip" install --quiet torch trl==0.23.1 diffusers==0.35.2 "transformers<5" peft accelerate protobuf
  OMP_NUM_THREADS=1 "$OUT/venv/bin/python" $HERE/train.py "$OUT/trl"
fi
PYTHON=${PYTHON:-.venv/bin/python}
SAME="num_steps=8 guidance=2.0 train_reward=hps
  evaluation.samples_per_prompt=2 evaluation.held_out_samples_per_prompt=1 evaluation.kl_samples=24"
$PYTHON -m src.run +experiment=evaluate weights="$OUT/trl/checkpoints" $SAME run_dir="$OUT/series" "$@"
$PYTHON -m src.run +experiment=evaluate weights="$(ls -d "$OUT"/trl/checkpoints/checkpoint_* | sort -V | tail -1)" scale=0.25,0.5,0.75,1 $SAME \
  run_dir="$OUT/frontier" "$@"
$PYTHON $HERE/analyse.py "$OUT"
