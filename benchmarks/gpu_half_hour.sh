#!/bin/sh
# One piece of at most ten minutes on a GPU machine; the same command again goes on where it stopped.
#
#     OUT=outputs/gpu sh benchmarks/gpu_half_hour.sh       # once, twice, three times
#     sh benchmarks/gpu_half_hour.sh --tiny                # all of it in small, on a CPU
#
# What the machine lacks is installed first: from wheels in the folder $WHEELS, or from the index.
# At most eight files of 16 MB come to lie in $OUT; gpu_half_hour.py says which.
set -e
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-$(command -v python || command -v python3)}
$PYTHON benchmarks/gpu_install.py
PYTHONPATH="$PWD:$PWD/outputs/cache/site:$PYTHONPATH" exec $PYTHON -u benchmarks/gpu_half_hour.py --out "${OUT:-outputs/cache/gpu_half_hour/out}" "$@"
