#!/usr/bin/env bash
# Trains hps on 250, 1,000 and 4,000 comparisons and optimises each by DDPO, for three seeds (or those named on the
# command line). What is done is not repeated.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-.venv/bin/python}
OUT=${OUT:-multirun/proxy_scaling}

[ $# -gt 0 ] || set -- 0 1 2
for seed; do
  for pairs in 250 1000 4000; do
    reward=$OUT/reward_${pairs}_seed$seed run=$OUT/ddpo_${pairs}_seed$seed
    epochs=$((pairs < 1000 ? 40 : pairs < 4000 ? 20 : 8))  # few comparisons need many passes; the best epoch is kept
    if [ ! -f "$reward/summary.json" ]; then
      [ ! -d "$reward" ] || mv "$reward" "$reward.unfinished.$(date +%s)"
      $PYTHON -m src.run +experiment=train_reward_hps pairs=$pairs seed=$seed run_dir="$reward" threads=1 \
        reward_training.max_epochs=$epochs reward_training.patience=$epochs
    fi
    [ ! -f "$run/summary.json" ] || continue
    if [ -f "$run/config.yaml" ]; then
      $PYTHON -m src.run resume="$run" threads=1
    else  # the first 80 iterations of budget=study
      $PYTHON -m src.run +experiment=ddpo_hps seed=$seed budget=study iterations=80 evaluation.every=10 threads=1 \
        run_dir="$run" suite.rewards.hps.path="$reward/reward"
    fi
  done
done
