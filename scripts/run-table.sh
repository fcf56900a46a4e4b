#!/usr/bin/env bash
# Every row of the table on one corpus: data, trainings, tests, ablations, tables and figures.
#   bash scripts/run-table.sh RECORDS_DIR RUNS_DIR [flags of the SCM and Qwen trainings]
# Interrupted, it goes on where it was; RUNS_DIR/settings.txt holds it to the settings it began with.
# From the environment: BACKBONE and MODERNBERT (folders; default SmolLM2-135M and a small random
# ModernBERT), MAX_LENGTH (tokens), MODERNBERT_FLAGS, PARTIAL_FLAGS (of its partial test), TEST_FLAGS
# (of all model tests), CAUSAL_FLAGS (of SCM's and Qwen's), WORD_RULES (more of them than "all", see
# run-ablations.sh). These may change later: ABLATIONS=no leaves them out, SEEDS="42 43 44" trains SCM
# and Qwen once a seed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ $# -lt 2 ]]; then
    echo "usage: $0 RECORDS_DIR RUNS_DIR [training flags; see run-scm.sh --help]" >&2
    exit 2
fi
source scripts/setup.sh
RECORDS=${1%/} RUNS=${2%/}
FLAGS=("${@:3}")
BACKBONE=${BACKBONE:-backbones/smollm2-135m} MODERNBERT=${MODERNBERT:-}
DATA=$RUNS/data ENCODER_DATA=$RUNS/data-modernbert
read -ra TEST <<< "${TEST_FLAGS:-}"
read -ra CAUSAL <<< "${CAUSAL_FLAGS:-}"
read -ra PARTIAL <<< "${PARTIAL_FLAGS:-}"
read -ra ENCODER <<< "${MODERNBERT_FLAGS:-}"
read -ra RULES <<< "${WORD_RULES:-}"
read -ra SEED <<< "${SEEDS:-}"
run() { bash "scripts/run-$1.sh" "${@:2}"; }
missing() { [[ ! -e $1 ]]; }
tested() { [[ $RUNS/metrics/$1/run.json -nt $RUNS/$2 ]]; }  # row; what it must be newer than
test_row() {  # folder, row, model, data, flags
    local metrics=$RUNS/metrics/$1 again=()
    tested "$1" "models/$3/run.json" && return
    missing "$metrics" || again=(--overwrite)  # of a model that was trained anew since
    run "$2" test --model-path "$RUNS/models/$3" --data-dir "$4" --output-dir "$metrics" \
        "${again[@]}" "${TEST[@]}" "${@:5}"
}
causal_rows() {  # end of the folders' names, more flags of the trainings
    run scm --output-dir "$RUNS/models/scm$1" --data-dir "$DATA" --base-model-path "$BACKBONE" \
        --resume "${FLAGS[@]}" "${@:2}"
    test_row "scm$1" scm "scm$1" "$DATA" "${CAUSAL[@]}"
    run qwen-full --output-dir "$RUNS/models/qwen$1" --data-dir "$DATA" \
        --base-model-path "$BACKBONE" --resume "${FLAGS[@]}" "${@:2}"
    test_row "qwen-full$1" qwen-full "qwen$1" "$DATA" "${CAUSAL[@]}"
    test_row "qwen-partial$1" qwen-partial "qwen$1" "$DATA" "${CAUSAL[@]}"
}

python -m utils.same_settings "$RUNS/settings.txt" "records=$RECORDS" \
    "BACKBONE=${BACKBONE%/}" "MODERNBERT=${MODERNBERT%/}" "MAX_LENGTH=${MAX_LENGTH:-4096}" \
    "MODERNBERT_FLAGS=${ENCODER[*]}" "PARTIAL_FLAGS=${PARTIAL[*]}" "TEST_FLAGS=${TEST[*]}" \
    "CAUSAL_FLAGS=${CAUSAL[*]}" "${RULES[@]/#/WORD_RULES }" "training flags=${FLAGS[*]}"
missing "$BACKBONE" && bash scripts/get-backbone.sh smollm2-135m "$BACKBONE"
missing "$DATA" && run data "$DATA" "$BACKBONE" --input-dir "$RECORDS" --max-length "${MAX_LENGTH:-4096}"
MODERNBERT=${MODERNBERT:-$RUNS/random-modernbert}
missing "$MODERNBERT" && bash scripts/get-backbone.sh random-modernbert "$MODERNBERT" --corpus "$RECORDS"
missing "$ENCODER_DATA" && run data "$ENCODER_DATA" "$MODERNBERT" --input-dir "$RECORDS" \
    --max-length "${MAX_LENGTH:-4096}"

for method in tfidf length; do
    tested $method data/meta.json || run floor $method --data-dir "$DATA" \
        --output-dir "$RUNS/metrics/$method" --overwrite
done
run modernbert-full --output-dir "$RUNS/models/modernbert" --data-dir "$ENCODER_DATA" \
    --base-model-path "$MODERNBERT" --resume "${ENCODER[@]}"
test_row modernbert-full modernbert-full modernbert "$ENCODER_DATA"
test_row modernbert-partial modernbert-partial modernbert "$ENCODER_DATA" "${PARTIAL[@]}"
causal_rows "" ${SEED:+--seed "$SEED"}
for seed in "${SEED[@]:1}"; do causal_rows "-$seed" --seed "$seed"; done
if [[ ${ABLATIONS:-yes} != no ]]; then
    if [[ " ${RULES[*]}" != *" all="* ]]; then
        RULES=("all=$RUNS/data-words-all" "${RULES[@]}")
        missing "$RUNS/data-words-all" && run data "$RUNS/data-words-all" "$BACKBONE" \
            --input-dir "$RECORDS" --max-length "${MAX_LENGTH:-4096}" --word-rule all
    fi
    WORD_RULES="${RULES[*]}" TEST_FLAGS="${TEST[*]} ${CAUSAL[*]}" \
        run ablations "$DATA" "$BACKBONE" "$RUNS" "${FLAGS[@]}"
fi

bash scripts/make-tables.sh "$RUNS" --overwrite
bash scripts/make-figures.sh "$RUNS" --overwrite
bash scripts/make-examples.sh "$RUNS/metrics/scm" --overwrite
