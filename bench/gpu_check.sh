#!/usr/bin/env bash
# Checks and times every kernel on a machine with an NVIDIA GPU, in less than ten minutes and without a network.
#
#   make gpu-bundle && bash bench/gpu_check.sh        # the first half where there is a compiler, the second anywhere
#   bash bench/gpu_check.sh --only 'native/accumulate*' --blocking --memcheck
#   PYTHON=/path/to/python bash bench/gpu_check.sh    # another interpreter than the python3 that has torch
#
# docs/gpu-check.md says what it does and how to read the result; --help lists the options.
set -euo pipefail
bench=$(cd "$(dirname "$0")" && pwd)

has_torch() { command -v "$1" >/dev/null && "$1" -c 'import importlib.util as u, sys; sys.exit(not u.find_spec("torch"))'; }

for python in ${PYTHON:-python3 python "$bench/../.venv/bin/python"}; do
  if has_torch "$python"; then
    # Whatever the caller's folder, relative names in the options are of it.
    export PYTHONUNBUFFERED=1 PYTHONPATH="$bench${PYTHONPATH:+:$PYTHONPATH}"
    exec "$python" -m gpu_check "$@"
  fi
done
echo "bench/gpu_check.sh: no python with torch (looked at ${PYTHON:-python3, python and .venv/bin/python}): set PYTHON" >&2
exit 2
