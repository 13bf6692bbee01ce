#!/usr/bin/env bash
# Reset strategies by ratio, five seeds. What is done is not repeated; a run that fails stops no other.
set -uo pipefail
cd "$(dirname "$0")/../.."
OUT=${OUT:-multirun/reset_ablation}
failed=0
# the arms of the paper's claims first, so that an unfinished study has all seeds of those
for arms in "reset=none,full" "reset=active,dormant,random reset.ratio=1.0" \
  "reset=active,dormant,random reset.ratio=0.5" "reset=active reset.ratio=1.0 reset.outgoing=zero" \
  "reset=active,dormant,random reset.ratio=0.1,0.25"; do
  case $arms in *outgoing*) redraw= ;; *) redraw=reset.outgoing=redraw ;; esac
  for seed in ${SEEDS:-0 1 2 3 4}; do
    # shellcheck disable=SC2086
    ${PYTHON:-.venv/bin/python} -m src.run -m +experiment=tdpo_r_hps critic=image_tower_score critic_epochs=10 normaliser.buffer=8 $arms $redraw \
      seed="$seed" iterations=60 lr_factor=10 lr_ramp=60 evaluation.every=5 hydra.sweep.dir="$OUT" "$@" || failed=1
  done
done
exit $failed
