#!/usr/bin/env bash
# The whole main job on a real model: search a skip set, evaluate it on prompts the search has not seen, print the table.
# Usage: scripts/demo.sh [SELFSPEC]     a few minutes on two cores; every step says which folder it wrote.
set -euo pipefail
cd "$(dirname "$0")/.."
selfspec=${1:-selfspec}

echo "1/3  search: which sublayers of SmolLM2-135M can a draft leave out?"
run=$("$selfspec" search experiment=demo | tee /dev/stderr | sed -n 's/^run: //p')
echo "2/3  evaluate: the set that was found, and others, against plain decoding"
evaluation=$("$selfspec" evaluate experiment=demo skip="$run" | tee /dev/stderr | sed -n 's/^run: //p')
echo "3/3  report"
"$selfspec" report runs="$evaluation,$run" name=demo
