#!/usr/bin/env bash
# scripts/build_and_test.sh
#
# Everything that must hold before a change is taken: builds the whole library (CUDA kernels included) into build/,
# runs the lints, then all tests; GPU tests are skipped, with their reason, where there is no GPU, but their own code is
# tried on the host engine first.
# Needs Python 3.10 or later, g++ and git; a CUDA compiler is installed into .venv where there is none.
#
#   JOBS=2              compilers at a time, each up to 5 GB
#   FLASH3_CUDA=ON      OFF: the host engine alone
set -euo pipefail
cd "$(dirname "$0")/.."
jobs=${JOBS:-2} cuda=${FLASH3_CUDA:-ON}

step() {
  echo "== $(date +%T) $*"
}

step "toolchain"
scripts/setup_toolchain.sh "$([ "$cuda" = ON ] && echo cuda || echo host)"
# shellcheck source=/dev/null
. .venv/toolchain.sh
python -m pip install --quiet --disable-pip-version-check -r scripts/requirements-dev.txt

step "build"
cmake -S . -B build -G Ninja -DFLASH3_CUDA="$cuda" -DFLASH3_PTXAS_VERBOSE="$cuda" -DPython3_EXECUTABLE="$PWD/.venv/bin/python" --no-warn-unused-cli
python scripts/with_budget.py --max-gib 5 cmake --build build -j "$jobs"

# Each of these says something of its own, so all of them run; the script fails when one has failed. pytest's summary of
# all tests comes last.
step "lints"
lints=0 trial=0 tests=0
export PRE_COMMIT_HOME=$PWD/.venv/pre-commit
pre-commit run --all-files || lints=$?

step "the GPU tests' own code, on the host engine"
export FLASH3_BUILD_DIR=$PWD/build
FLASH3_TEST_BACKEND=host python -m pytest -q tests/gpu || trial=$?

step "tests"
python -m pytest || tests=$?
if [ "$lints$trial$tests" != 000 ]; then
  step "FAILED; exit codes: lints $lints, GPU tests on the host engine $trial, tests $tests" >&2
  exit 1
fi
