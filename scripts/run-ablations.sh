#!/usr/bin/env bash
# Trains and tests SCM without one thing at a time, and over alpha; finished runs are left alone.
#   bash scripts/run-ablations.sh DATA_DIR BACKBONE RUNS_DIR [training flags]
# Other word labels: WORD_RULES="all=DATA_DIR_2 delete=DATA_DIR_3" bash …, data of the same records
# and splits made with --word-rule: all by run-data.sh, others by run-annotate.sh. DATA_DIR tests all.
# Flags of the tests: TEST_FLAGS="--precision auto" bash …
set -euo pipefail
if [[ $# -lt 3 ]]; then
    echo "usage: $0 DATA_DIR BACKBONE RUNS_DIR [training flags; see run-scm.sh --help]" >&2
    exit 2
fi
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
DATA=${1%/} BACKBONE=${2%/} RUNS=${3%/} FLAGS=("${@:4}")
read -ra TEST <<< "${TEST_FLAGS:-}"
read -ra RULES <<< "${WORD_RULES:-}"
one() {  # folder, name in tables, data folder of the training, its flags; all are tested alike
    bash scripts/run-scm.sh --output-dir "$RUNS/models/$1" --data-dir "$3" \
        --base-model-path "$BACKBONE" --resume "${FLAGS[@]}" "${@:4}"
    bash scripts/run-scm.sh test --name "$2" --model-path "$RUNS/models/$1" --data-dir "$DATA" \
        --output-dir "$RUNS/metrics/$1" "${TEST[@]}"
}
one scm-no-logic "SCM, no logic loss" "$DATA" --beta 0
one scm-no-holistic "SCM, no holistic scorer (α 1)" "$DATA" --alpha 1 --beta 0
one scm-alpha-0.2 "SCM, α 0.2" "$DATA" --alpha 0.2
one scm-alpha-0.4 "SCM, α 0.4" "$DATA" --alpha 0.4  # the paper takes 0.6
one scm-alpha-0.8 "SCM, α 0.8" "$DATA" --alpha 0.8
for rule in "${RULES[@]}"; do
    one "scm-words-${rule%%=*}" "SCM, word rule ${rule%%=*}" "${rule#*=}"
done
