#!/usr/bin/env bash
# Trains and tests SCM without one thing at a time, and over alpha; finished runs are left alone.
#   bash scripts/run-ablations.sh DATA_DIR BACKBONE RUNS_DIR [training flags]
# Other word labels: WORD_RULES="all=DATA_DIR_2 delete=DATA_DIR_3" bash …, data of the same records
# and splits made with --word-rule: all by run-data.sh, others by run-annotate.sh. DATA_DIR tests all.
# Flags of the tests: TEST_FLAGS="--precision auto" bash …; of SEEDS (run-table.sh) the first is taken
# RUNS_DIR/settings-ablations.txt holds later runs to the same settings; word rules may be added.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ $# -lt 3 ]]; then
    echo "usage: $0 DATA_DIR BACKBONE RUNS_DIR [training flags; see run-scm.sh --help]" >&2
    exit 2
fi
source scripts/setup.sh
DATA=${1%/} BACKBONE=${2%/} RUNS=${3%/}
FLAGS=("${@:4}")
read -ra TEST <<< "${TEST_FLAGS:-}"
read -ra RULES <<< "${WORD_RULES:-}"
read -ra SEED <<< "${SEEDS:-}"
one() {  # folder, name in tables, data folder of the training, its flags; all are tested alike
    local model=$RUNS/models/$1 metrics=$RUNS/metrics/$1 again=()
    bash scripts/run-scm.sh --output-dir "$model" --data-dir "$3" --base-model-path "$BACKBONE" \
        --resume "${FLAGS[@]}" ${SEED:+--seed "$SEED"} "${@:4}"
    [[ $metrics/run.json -nt $model/run.json ]] && return
    [[ ! -e $metrics ]] || again=(--overwrite)  # of a model that was trained anew since
    bash scripts/run-scm.sh test --name "$2" --model-path "$model" --data-dir "$DATA" \
        --output-dir "$metrics" "${again[@]}" "${TEST[@]}"
}
python -m utils.same_settings "$RUNS/settings-ablations.txt" \
    "data=${DATA#"$RUNS"/}" "BACKBONE=$BACKBONE" "TEST_FLAGS=${TEST[*]}" \
    "${RULES[@]/#/WORD_RULES }" "training flags=${FLAGS[*]}"
one scm-no-logic "SCM, no logic loss" "$DATA" --beta 0
one scm-no-holistic "SCM, no holistic scorer (α 1)" "$DATA" --alpha 1 --beta 0
for alpha in 0.2 0.4 0.8; do  # the paper takes 0.6
    one "scm-alpha-$alpha" "SCM, α $alpha" "$DATA" --alpha "$alpha"
done
for rule in "${RULES[@]}"; do
    one "scm-words-${rule%%=*}" "SCM, word rule ${rule%%=*}" "${rule#*=}"
done
