#!/usr/bin/env bash
# Builds, checks and times the CUDA kernels on a machine with an NVIDIA GPU, in less than eight minutes.
#
#   bash bench/gpu_check.sh                     # a virtual environment of its own in .venv-gpu
#   PYTHON=/path/to/python bash bench/gpu_check.sh   # an interpreter that has torch; the project goes in there
#
# TORCH says what pip installs where there is no torch (default: torch). The CSV is bench/results/gpu_<name>.csv.
# Plots, a copy of the CSV and logs go to $OUT if it is set, else to bench/results and build/gpu_check. Ends with
# a table; the status is 1 if a section failed.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

readonly BUDGET=470 # seconds for everything
readonly LOGS="${OUT:-build/gpu_check}"
export PLOTS="${OUT:-bench/results}"
export PYTHON="${PYTHON:-}"
unset KRADAGRAD_BACKEND # the measurement names its backends
NAMES=()
VERDICTS=()
PATH="$PATH:/usr/local/cuda/bin"
mkdir -p "$LOGS" "$PLOTS"

# section NAME SECONDS COMMAND...: runs a command, or a function of this script that is exported, under a time
# limit; keeps its output and its verdict.
section() {
  local name=$1 limit=$2 status start=$SECONDS
  shift 2
  local left=$((BUDGET - SECONDS))
  if ((left < 5)); then
    verdict "$name" "FAIL (no time left)"
    return 1
  fi
  if ((limit > left)); then limit=$left; fi
  printf '\n== %s (at most %d s)\n' "$name" "$limit"
  timeout --kill-after=5 "$limit" bash -uo pipefail -c '"$@"' section "$@" 2>&1 | tee "$LOGS/$name.log"
  status=${PIPESTATUS[0]}
  case $status in
    0) verdict "$name" "PASS ($((SECONDS - start)) s)" ;;
    124 | 137) verdict "$name" "FAIL (time limit of $limit s)" ;;
    *) verdict "$name" "FAIL (status $status)" ;;
  esac
  return "$status"
}

# verdict NAME WORDS: a line of the summary.
verdict() {
  NAMES+=("$1")
  VERDICTS+=("$2")
}

# skip NAME REASON
skip() {
  printf '\n== %s: %s\n' "$1" "$2"
  verdict "$1" "SKIP ($2)"
}

has_torch() { "$1" -c 'import torch' 2>/dev/null; }

# Prints the interpreter to use; makes a virtual environment unless one was given.
choose_python() {
  if [[ -n $PYTHON ]]; then
    printf '%s\n' "$PYTHON"
    return
  fi
  # A torch that is there already is not fetched again.
  [[ -x .venv-gpu/bin/python ]] || python3 -m venv --system-site-packages .venv-gpu >&2 || return 1
  printf '%s\n' "$PWD/.venv-gpu/bin/python"
}

install_torch() { "$PYTHON" -m pip install "${TORCH:-torch}"; }

# Without isolation first: that needs no network where setuptools is recent enough.
install_project() {
  local build=auto
  if command -v nvcc >/dev/null; then build=cuda; fi
  # Only for the GPUs that are here: all architectures take minutes.
  TORCH_CUDA_ARCH_LIST=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | sort -u | paste -sd ';')
  export KRADAGRAD_BUILD=$build TORCH_CUDA_ARCH_LIST
  printf 'KRADAGRAD_BUILD=%s TORCH_CUDA_ARCH_LIST=%s\n' "$build" "$TORCH_CUDA_ARCH_LIST"
  "$PYTHON" -m pip install --no-build-isolation --no-deps -e . || "$PYTHON" -m pip install -e . || return 1
  # What tests and plots need beside it; without a network they go on with what is there.
  "$PYTHON" -c 'import pytest, hypothesis, pandas, matplotlib, safetensors' 2>/dev/null ||
    "$PYTHON" -m pip install --no-build-isolation -e '.[test]' ||
    printf 'the packages of the extra "test" are missing\n'
}

environment() {
  nvidia-smi || return 1
  if command -v nvcc >/dev/null; then nvcc --version | tail -n 2; else printf 'no nvcc\n'; fi
  "$PYTHON" --version
}

report() { "$PYTHON" -m kradagrad_ext.env_report; }

# Without torch's caching allocator every tensor is an allocation of its own, whose bounds are watched.
sanitize() {
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" --error-exitcode 9 \
    "$PYTHON" bench/gpu_kernels.py --smoke
}

run_tests() {
  local parallel=()
  if "$PYTHON" -c 'import xdist' 2>/dev/null; then parallel=(-n auto); fi
  "$PYTHON" -m pytest -q -p no:cacheprovider "${parallel[@]}"
}

plots() {
  local csv found=1
  for csv in bench/results/gpu_*.csv; do
    [[ -e $csv ]] || continue
    found=0
    "$PYTHON" bench/gpu_plot.py "$csv" --out "$PLOTS" || return 1
    [[ $csv -ef $PLOTS/${csv##*/} ]] || cp "$csv" "$PLOTS/"
  done
  return "$found"
}

summary() {
  local index failed=0
  printf '\n%-14s %s\n' section verdict
  for index in "${!NAMES[@]}"; do
    printf '%-14s %s\n' "${NAMES[index]}" "${VERDICTS[index]}"
    [[ ${VERDICTS[index]} != FAIL* ]] || failed=1
  done
  return "$failed"
}

export -f install_torch install_project environment report sanitize run_tests plots

checks() {
  section environment 20 environment || return
  has_torch "$PYTHON" || section torch 150 install_torch || return
  section install 200 install_project || return
  section report 20 report
  if command -v compute-sanitizer >/dev/null; then
    section memcheck 70 sanitize memcheck
    section racecheck 70 sanitize racecheck
  else
    skip memcheck "no compute-sanitizer"
    skip racecheck "no compute-sanitizer"
  fi
  section measure 140 "$PYTHON" bench/gpu_kernels.py
  section plots 30 plots
  # Last, since it takes whatever time is left.
  section tests 300 run_tests
}

PYTHON=$(choose_python) || { printf 'python3 -m venv failed: set PYTHON\n' >&2; exit 1; }
checks
summary
