#!/usr/bin/env bash
# Runs every GPU test (the README's examples among them) and compute-sanitizer's tools on this machine, and writes a record with a row per test.
#
#   scripts/gpu_check.sh [RECORD.json]      default: benchmarks/records/gpu-tests.json
#
# The library is build/libflash3.so, or PYFLASH3_LIBRARY; PYFLASH3_COMMIT names the revision where there is no git.
# PYTHON chooses the interpreter, SANITIZERS the tools ("" for none), TEST_SECONDS and SANITIZER_SECONDS the limits.
# With PROCESSES=9 so many share the tests, which takes pytest-xdist. The tools run one after the other in any case: two
# at a time on one GPU take many times as long.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

record=${1:-benchmarks/records/gpu-tests.json}
python=${PYTHON:-python3}
processes=${PROCESSES:-1}
sanitizers=${SANITIZERS-memcheck racecheck synccheck}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export PYFLASH3_LIBRARY=${PYFLASH3_LIBRARY:-$PWD/build/libflash3.so}
status=0

# Without this, a machine on which every test is skipped would pass.
"$python" -c 'import sys; from pyflash3.tools.backend import cuda_obstacle; sys.exit(cuda_obstacle())' || exit 1

side_by_side=()
if [[ $processes -gt 1 ]]; then side_by_side=(-n "$processes" --dist worksteal); fi
begin=$SECONDS
timeout --kill-after=10 "${TEST_SECONDS:-300}" \
  "$python" -m pytest tests/gpu tests/build/test_readme.py -m gpu -q --tb=short --maxfail=30 --durations=15 \
  "${side_by_side[@]}" --record "$record" || status=1
echo "tests: $((SECONDS - begin)) s"

tool=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null || true)
if [[ -z $tool && -n $sanitizers ]]; then
  echo "compute-sanitizer is not installed: memcheck, racecheck and synccheck did not run"
  sanitizers=""
fi
for name in $sanitizers; do
  begin=$SECONDS
  log=$(mktemp)
  if timeout --kill-after=10 "${SANITIZER_SECONDS:-120}" \
    "$tool" --tool "$name" --error-exitcode 9 "$python" -m tests.gpu.sanitizer_shapes >"$log" 2>&1; then
    # The tool's own verdict and the number of calls it saw, so that a run that checked nothing cannot pass.
    calls=$(grep -c ': right$' "$log")
    verdict=$(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' "$log" | tail -n 1)
    echo "$name: $calls calls, ${verdict:-no verdict from the tool}, $((SECONDS - begin)) s"
    [[ $calls -gt 0 && -n $verdict ]] || status=1
  else
    echo "$name: FAILED with exit code $?, $((SECONDS - begin)) s"
    tail -n 40 "$log"
    status=1
  fi
  rm -f "$log"
done
exit $status
