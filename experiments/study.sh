# Sourced by run.sh of a study, after `study=NAME` and `more=("$@")`. `job OVERRIDES...` runs a sweep over the seeds.
# What is done, here or wherever experiments/STUDY/runs was filled, is not repeated; a run that fails stops no other.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-.venv/bin/python} out=multirun/$study kept=experiments/$study/runs failed=0
mkdir -p "$out" "$kept"
"$python" -m src.report.kept restore "$out" "$kept" || exit

job() {
  "$python" -m src.run -m +study=critic "$@" seed="${SEEDS:-0,1,2,3,4}" hydra.sweep.dir="$out" "${more[@]}" || failed=1
  "$python" -m src.report.kept keep "$out" "$kept" || failed=1
}
