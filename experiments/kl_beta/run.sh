#!/usr/bin/env bash
# Which beta keeps near the base? 21 runs. SEEDS=0,1 names the seeds; options are handed on.
source "$(dirname "$0")/../study.sh"
protocol=+study=leaderboard SEEDS=${SEEDS:-0,1,2}
into kl_beta
pressed() { job +experiment=ddpo train_reward=aesthetic lr_factor=5 evaluation.kl_samples=32 evaluation.seed=0 "$@"; }
pressed regulariser=none
for beta in 3e-4 1e-3 3e-3; do
  for regulariser in kl_reward kl_loss; do pressed regulariser=$regulariser regulariser.beta=$beta; done
done
exit "$failed"
