#!/usr/bin/env bash
# Trains and tests SCM without one thing at a time, and over alpha; finished runs are left alone.
#   bash scripts/run-ablations.sh DATA_DIR BACKBONE RUNS_DIR [training flags]
# Other word labels: WORD_RULES="all=DATA_DIR_2 delete=DATA_DIR_3" (made with --word-rule) bash …
# Flags of the tests: TEST_FLAGS="--precision auto" bash …
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ $# -lt 3 ]]; then
    echo "usage: $0 DATA_DIR BACKBONE RUNS_DIR [training flags; see run-scm.sh --help]" >&2
    exit 2
fi
DATA=$1 BACKBONE=$2 RUNS=$3
FLAGS=("${@:4}")
read -ra TEST_FLAGS <<< "${TEST_FLAGS:-}"
one() {  # folder, name in tables, data folder, flags of the training
    bash scripts/run-scm.sh --output-dir "$RUNS/models/$1" --data-dir "$3" \
        --base-model-path "$BACKBONE" --resume "${FLAGS[@]}" "${@:4}"
    [[ -f $RUNS/metrics/$1/metrics.json ]] || bash scripts/run-scm.sh test --name "$2" \
        --model-path "$RUNS/models/$1" --data-dir "$3" --output-dir "$RUNS/metrics/$1" \
        "${TEST_FLAGS[@]}"
}
one scm-no-logic "SCM, no logic loss" "$DATA" --beta 0
one scm-no-holistic "SCM, no holistic scorer (α 1)" "$DATA" --alpha 1 --beta 0
for alpha in 0.2 0.4 0.8; do  # the paper takes 0.6
    one "scm-alpha-$alpha" "SCM, α $alpha" "$DATA" --alpha "$alpha"
done
for rule in ${WORD_RULES:-}; do
    one "scm-words-${rule%%=*}" "SCM, word rule ${rule%%=*}" "${rule#*=}"
done
