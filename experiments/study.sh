# Sourced by run.sh of a study, with the options of its command line. `into STUDY` names the study that the runs are of;
# `job OVERRIDES...` runs a sweep over the seeds. What is done, here or wherever experiments/STUDY/runs was filled, is not
# repeated; a run that fails stops no other. `protocol` is what all runs share, +study=critic where nothing else is said.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-.venv/bin/python} more=("$@") failed=0 protocol=+study=critic

into() {
  out=multirun/$1 kept=experiments/$1/runs
  mkdir -p "$out" "$kept"
  "$python" -m src.report.kept restore "$out" "$kept" || exit
}

job() {
  "$python" -m src.run -m $protocol "$@" seed="${SEEDS:-0,1,2,3,4}" hydra.sweep.dir="$out" "${more[@]}" || failed=1
  "$python" -m src.report.kept keep "$out" "$kept" || failed=1
}

# TDPO without resets, which all three studies need
shared_tdpo() { into reset_ablation && job +experiment=tdpo_r_aesthetic reset=none reset.outgoing=redraw; }
