#!/usr/bin/env bash
# Check and time every kernel on a machine with an NVIDIA GPU, in less than ten minutes and without a network.
#
#   make gpu-bundle && bash bench/gpu_check.sh        # make needs a compiler, the script does not
#   bash bench/gpu_check.sh --only 'native/update_moments*' --blocking --memcheck
#   PYTHON=/path/to/python bash bench/gpu_check.sh    # another interpreter than the python3 that has torch
#
# docs/gpu-check.md describes the check and its results; --help lists the options.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

has_torch() { command -v "$1" >/dev/null && "$1" -c 'import importlib.util as u, sys; sys.exit(not u.find_spec("torch"))'; }

run='import runpy, sys; sys.path.append(sys.argv.pop(1)); runpy.run_module("bench.gpu.check", run_name="__main__", alter_sys=True)'

for python in ${PYTHON:-python3 python "$root/.venv/bin/python"}; do
  if has_torch "$python"; then
    # No cd: relative paths in the options refer to the caller's folder. No PYTHONPATH: workers, which inherit the
    # environment, must not find the tree's package.
    export PYTHONUNBUFFERED=1
    exec "$python" -c "$run" "$root" "$@"
  fi
done
echo "bench/gpu_check.sh: no python with torch (looked at ${PYTHON:-python3, python and .venv/bin/python}): set PYTHON" >&2
exit 2
