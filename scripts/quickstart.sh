#!/usr/bin/env bash
# scripts/quickstart.sh
#
# From a fresh clone to a running, checked example: builds the library into build/, makes .venv with everything to use
# it, runs a demo. Where nvidia-smi shows a GPU, the CUDA kernels and CuPy come along (a few minutes on 2 cores, most of
# them downloads); elsewhere the host engine alone (under a minute). Needs Python 3.10 or later, g++ and git.
set -euo pipefail
cd "$(dirname "$0")/.."

mode=host cuda=OFF
if command -v nvidia-smi > /dev/null && nvidia-smi -L > /dev/null 2>&1; then
  mode=cuda cuda=ON
  echo "== $(nvidia-smi -L | head -n 1): building the CUDA kernels too"
else
  echo "== no NVIDIA GPU here: building the host engine for NumPy arrays"
fi

scripts/setup_toolchain.sh "$mode"
# shellcheck source=/dev/null
. .venv/toolchain.sh
# One nvcc needs up to 5 GB.
jobs=$(awk -v cores="$(nproc)" '/MemAvailable/ {n = int($2 / 5e6); print (n < 1) ? 1 : (n < cores) ? n : cores}' /proc/meminfo)
cmake -S . -B build -G Ninja -DFLASH3_CUDA=$cuda -DPython3_EXECUTABLE="$PWD/.venv/bin/python" --no-warn-unused-cli > /dev/null
cmake --build build --target flash3 -j "$jobs"

# .venv finds this checkout from every folder.
.venv/bin/python -c 'import sys, sysconfig; print(sys.argv[1], file=open(sysconfig.get_path("purelib") + "/pyflash3_checkout.pth", "w"))' "$PWD"

.venv/bin/python -m pyflash3 info
echo
.venv/bin/python -m pyflash3 demo
cat << 'END'

Next: .venv/bin/python -m pyflash3 selftest         compares a few hundred shapes with the formula in float64
      .venv/bin/python                              and then: from pyflash3 import flash_attn_func
END
