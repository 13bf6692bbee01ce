#!/usr/bin/env bash
# What a machine with one GPU says of this project, in twelve minutes at most and without a network: the tests that want
# a GPU, then iterations of sd14, sd35 and sdxl at real size, from random weights that are made there.
#
#   benchmarks/gpu.sh              writes gpu/tests.log, gpu/SUITE.json, gpu/SUITE.log; prints a line a suite
#   SIZE=tiny benchmarks/gpu.sh    does all of it with tiny networks, on a CPU too: does it run?
#
# OUT names another folder, PYTHON an interpreter, WHEELS a folder of wheels of what that interpreter lacks, MINUTES the
# time there is, SUITES the suites in their order. What there is no time left for is said. Two iterations, of which the
# second counts, of 32 pictures and ten steps; further arguments are overrides: num_steps=50.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python} out=${OUT:-gpu} size=${SIZE:-full}
suites=${SUITES:-sd14 sd35 sdxl sd14_single_gpu sd35_single_gpu sdxl_single_gpu}
if [ "$size" = full ]; then fewer=(--samples 32 num_steps=10); else fewer=(); fi
end=$((SECONDS + 60 * ${MINUTES:-12})) failed=0
mkdir -p "$out"
export PYTHONUNBUFFERED=1

if [ -n "${WHEELS:-}" ]; then
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl || exit
  export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
fi

# runs a command for as long as there is time; its output goes to a file
within() {
  local log=$1 left=$((end - SECONDS - 10)) status
  shift
  if [ "$left" -lt 10 ]; then echo "no time left" > "$log"; return 124; fi
  timeout -k 10 "$left" "$@" > "$log" 2>&1
  status=$?
  if [ "$status" -eq 124 ] || [ "$status" -eq 137 ]; then echo "no time left" >> "$log"; fi
  return "$status"
}

if within "$out/tests.log" "$python" -m pytest -q -m '' -p no:cacheprovider tests/test_gpu.py; then state=pass; else state=FAIL failed=1; fi
echo "tests: $state: $(tail -n 1 "$out/tests.log")"
for suite in $suites; do
  rm -f "$out/$suite.json"
  within "$out/$suite.log" "$python" -m benchmarks.sd14 --size "$size" --suite "$suite" \
    --out "$out/$suite.json" ${fewer[@]+"${fewer[@]}"} "$@"
  if [ ! -f "$out/$suite.json" ]; then
    echo "$suite: FAIL: $(tail -n 1 "$out/$suite.log")"
    failed=1
    continue
  fi
  "$python" - "$out/$suite.json" << 'TABLE' || failed=1
import json, pathlib, sys
path = pathlib.Path(sys.argv[1])
of = json.loads(path.read_text())
print(
    f"{path.stem}: {of['seconds_per_iteration']:.1f} s an iteration of {of['images_per_iteration']} pictures, "
    f"{of['sampled_images_per_second']:.2f} pictures/s, "
    f"{of['optimizer_updates_per_second_of_update']:.2f} updates/s, {of['peak_gib']:.1f} GiB on {of['device']}"
)
TABLE
done
exit "$failed"
