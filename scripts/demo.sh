#!/usr/bin/env bash
# The whole main job on a real model: search a skip set, evaluate it on prompts the search has not seen, print the table.
# Usage: scripts/demo.sh [SELFSPEC]      a few minutes on two cores; each step prints the folder it wrote.
set -euo pipefail
cd "$(dirname "$0")/.."
selfspec=${1:-selfspec}
log=$(mktemp)
trap 'rm -f "$log"' EXIT

step() { # run a verb, show what it prints, and keep the folder it names last
    "$selfspec" "$@" | tee "$log"
    run=$(sed -n 's/^run: //p' "$log")
}

echo "== 1/3 search: which sublayers of SmolLM2-135M can a draft leave out?"
step search name=demo searcher.n_trials=24 objective.n_prompts=4 objective.max_new_tokens=24 finals.n_prompts=4
search=$run
echo "== 2/3 evaluate: what was found, a published kind of set, and nothing skipped, against plain decoding"
step evaluate name=demo skip="$search" arm=searched n=9 max_new_tokens=48 \
    arms='{every fourth layer: {skip: "a3,7,11,15,19,23,27 m3,7,11,15,19,23,27"}, deep attention: {skip: a14-28}}'
echo "== 3/3 report"
"$selfspec" report name=demo runs="$run,$search"
