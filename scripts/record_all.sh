#!/usr/bin/env bash
# Makes all that benchmarks/records holds in one run on this machine: with scripts/gpu_check.sh every GPU test, then
# every grid beside its peers, what a call costs the host, and accuracy. A test that fails shows in its record and in the
# exit code; the rest is measured all the same.
#
#   scripts/record_all.sh DIR [OPTION...]      options of scripts/bench.py, such as --peers PATH
#
# The settings of gpu_check.sh apply; PROCESSES=9 makes its part much shorter.
set -uo pipefail
out=$(realpath -m "${1:?usage: scripts/record_all.sh DIR [OPTION of scripts/bench.py...]}")
shift
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
mkdir -p "$out"

python=${PYTHON:-python3}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export PYFLASH3_LIBRARY=${PYFLASH3_LIBRARY:-$PWD/build/libflash3.so}
status=0

scripts/gpu_check.sh "$out/gpu-tests.json" || status=1

# Record, then options.
measure() {
  local record=$1 begin=$SECONDS
  shift
  "$python" scripts/bench.py --out "$out/$record.json" "$@" || status=1
  echo "$record: $((SECONDS - begin)) s"
}
measure accuracy-bf16 --accuracy "$@"
measure paper-bf16 --grid paper "$@"
measure paper-fp16 --grid paper --dtype float16 "$@"
for grid in extra serving varlen options small decode few mla wide; do
  measure "$grid-bf16" --grid "$grid" "$@"
done
measure host-cost --host-cost "$@"
exit $status
