#!/usr/bin/env bash
# scripts/setup_toolchain.sh [host|cuda]
#
# Makes .venv with the pinned build tools; for cuda (the default) also finds nvcc 12.8 or later, or installs it from
# PyPI into .venv, and installs CuPy where there is a GPU. Writes .venv/toolchain.sh, which puts it all on PATH; source
# that before calling CMake. Needs Python 3.10 or later (set PYTHON to choose one), g++ and git. Writes to .venv and
# pip's cache alone.
set -euo pipefail
cd "$(dirname "$0")/.."
mode=${1:-cuda}

fail() {
  echo "setup_toolchain.sh: $*" >&2
  exit 1
}

make_venv() {
  local python=${PYTHON:-python3}
  command -v "$python" > /dev/null || fail "there is no $python on PATH; install Python 3.10 or later, or set PYTHON"
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    fail "$python is $("$python" --version); Python 3.10 or later is needed (set PYTHON to choose another)"
  command -v g++ > /dev/null || fail "there is no g++ on PATH; install one that knows C++17"
  [ -x .venv/bin/pip ] || "$python" -m venv .venv
  pip_install -r scripts/requirements-build.txt
}

pip_install() {
  .venv/bin/python -m pip install --quiet --disable-pip-version-check "$@"
}

# The folder of nvcc's own libraries is not where nvcc looks in the PyPI packages (lib instead of lib64).
pypi_cuda_folder() {
  .venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib") + "/nvidia/cu13")'
}

# Prints the version of an nvcc if it is 12.8 or later.
usable_nvcc() {
  local version
  version=$("$1" --version 2> /dev/null | sed -n 's/.*release \([0-9]*\.[0-9]*\).*/\1/p')
  [ -n "$version" ] && [ "$(printf '12.8\n%s\n' "$version" | sort -V | head -n 1)" = 12.8 ] && echo "$version"
}

find_nvcc() {
  local nvcc
  for nvcc in "${CUDACXX:-}" "$(command -v nvcc || true)" /usr/local/cuda/bin/nvcc; do
    if [ -n "$nvcc" ] && usable_nvcc "$nvcc" > /dev/null; then
      echo "$nvcc"
      return
    fi
  done
}

setup_cuda() {
  local nvcc cuda flags=
  pip_install --no-deps -r scripts/requirements-cuda.txt
  nvcc=$(find_nvcc)
  if [ -z "$nvcc" ]; then
    echo "setup_toolchain.sh: no nvcc 12.8 or later here; installing it from PyPI into .venv" >&2
    pip_install -r scripts/requirements-nvcc.txt
    cuda=$(pypi_cuda_folder)
    nvcc=$cuda/bin/nvcc
    flags=-L$cuda/lib
    usable_nvcc "$nvcc" > /dev/null || fail "$nvcc, installed from PyPI, does not run"
  fi
  # CuPy brings the CUDA libraries that it needs; they must be of the compiler's release where that lies beside them.
  if command -v nvidia-smi > /dev/null && nvidia-smi -L > /dev/null 2>&1; then
    pip_install -c scripts/requirements-nvcc.txt -r scripts/requirements-gpu.txt
  fi
  echo "setup_toolchain.sh: nvcc $(usable_nvcc "$nvcc") at $nvcc" >&2
  printf 'export CUDACXX=%q\nexport CUDAFLAGS=%q\n' "$nvcc" "$flags" >> .venv/toolchain.sh
}

case $mode in host | cuda) ;; *) fail "the argument is '$mode'; it must be host or cuda" ;; esac
make_venv
echo "export PATH=$(printf %q "$PWD/.venv/bin"):\$PATH" > .venv/toolchain.sh
if [ "$mode" = cuda ]; then setup_cuda; fi
