#!/usr/bin/env bash
# Runs the leaderboard, block by block of seeds; what is kept is not repeated, what was killed goes on, and a run that
# fails stops no other. Options behind are handed on to every run.
#   run.sh                      all entries
#   run.sh tune                 the tries of tuning, on another seed
#   run.sh anew                 once more, into multirun/leaderboard_anew, to be held against what is kept
#   run.sh check                fresh pictures of the top and the bottom, judged by a second gold (OTHER_GOLD=FOLDER)
#   run.sh enter NAME OVERRIDES a method that is not in entries.yaml
# SEEDS="0 1 2 3 4" are the blocks, of one seed or more ("0,1 2,3 4": hydra/launcher=joblib runs a block's seeds at once);
# METHODS="ddpo grpo" and REWARDS=hps select; JOBS=2 runs two commands at a time.
set -uo pipefail
cd "$(dirname "$0")/../.."
what=board
case ${1:-} in tune | anew | check | enter) what=$1 && shift ;; esac
plan=$("${PYTHON:-.venv/bin/python}" -m experiments.leaderboard.plan "$what" "$@" --seeds "${SEEDS:-}" \
  --methods "${METHODS:-}" --rewards "${REWARDS:-}" --other-gold "${OTHER_GOLD:-data/mini/other_gold}") || exit
[ -z "$plan" ] && echo "nothing is left to run" && exit
xargs -d '\n' -I {} -P "${JOBS:-1}" bash -c '{}' <<< "$plan"
