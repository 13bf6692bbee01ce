#!/usr/bin/env bash
# Trains hps on 250, 1,000 and 4,000 comparisons, three seeds each, and optimises each by DDPO. What is done is not repeated.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-.venv/bin/python}
OUT=${OUT:-multirun/proxy_scaling}

for seed in 0 1 2; do
  for pairs in 250 1000 4000; do
    reward=$OUT/reward_${pairs}_seed$seed run=$OUT/ddpo_${pairs}_seed$seed
    epochs=$((pairs < 1000 ? 40 : pairs < 4000 ? 20 : 8))  # few comparisons need many passes; the best epoch is kept
    if [ ! -f "$reward/summary.json" ]; then
      [ ! -d "$reward" ] || mv "$reward" "$reward.unfinished.$(date +%s)"
      $PYTHON -m src.run +experiment=train_reward_hps pairs=$pairs seed=$seed run_dir="$reward" \
        reward_training.max_epochs=$epochs reward_training.patience=$epochs
    fi
    [ ! -f "$run/summary.json" ] || continue
    if [ -f "$run/config.yaml" ]; then
      $PYTHON -m src.run resume="$run"
    else
      $PYTHON -m src.run +experiment=ddpo_hps seed=$seed iterations=120 evaluation.every=10 run_dir="$run" \
        suite.rewards.hps.path="$reward/reward"
    fi
  done
done
