#!/bin/sh
# What an engine by graphs does on this machine's GPU: exactness, speed beside transformers, costs. Needs torch and
# transformers, no network. Results: $OUT/check_gpu.json (written after every step) and a table at the end.
#
# Usage: scripts/check_gpu.sh [arguments of scripts/check_gpu.py], e.g. --minutes 8 --carried DIR
set -eu
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv 2>/dev/null || echo "no nvidia-smi"
exec "${PYTHON:-python3}" scripts/check_gpu.py "$@"
