#!/usr/bin/env bash
# The whole main job on a real model: search a draft, evaluate it on prompts the search has not seen, print the table.
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

echo "== 1/3 search: what should SmolLM2-135M draft with here? Parts first (lookup, int8, int4, head), then sublayers to skip"
step search name=demo stop=threshold stop.max_draft=6 stop.threshold=0.5 searcher.n_trials=20 costs.repeats=7 \
    objective.n_prompts=4 objective.max_new_tokens=32 finals.n_prompts=4 finals.top=3 finals.race=2
search=$run
echo "== 2/3 evaluate, beside plain decoding: what was found; its controls; and plain skipping, the published method"
step evaluate name=demo skip="$search" arm=searched stop=searched lookup=searched n=9 max_new_tokens=48 \
    arms="{plain skipping: {skip: 'a13,22 m20', lookup: null, stop: fixed}}"
echo "== 3/3 report"
"$selfspec" report name=demo runs="$run,$search" | tee "$log"
echo "
The pictures of the search: $(sed -n 's/^wrote \(.*\.png\)$/\1/p' "$log" | tr '\n' ' ')
What each number means: docs/start.md, "What the demo prints"
To go on:
  $selfspec decode prompt='Why is the sky blue?' skip=$search
  $selfspec runs show $(basename "$search")
  $selfspec search draft=skip name=plain    # the published method's space: sublayers to skip, and nothing else"
