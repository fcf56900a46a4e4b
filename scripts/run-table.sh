#!/usr/bin/env bash
# Every row of the table on one corpus: data, trainings, tests, ablations, tables and figures.
#   bash scripts/run-table.sh RECORDS_DIR RUNS_DIR [flags of the SCM and Qwen trainings]
# Interrupted, it goes on where it was. From the environment: BACKBONE and MODERNBERT (folders;
# default SmolLM2-135M and a small random ModernBERT), MAX_LENGTH (tokens), MODERNBERT_FLAGS,
# PARTIAL_FLAGS (of its partial test), TEST_FLAGS (of all model tests), CAUSAL_FLAGS (of SCM's and
# Qwen's), WORD_RULES (see run-ablations.sh), ABLATIONS=no to leave them out.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ $# -lt 2 ]]; then
    echo "usage: $0 RECORDS_DIR RUNS_DIR [training flags; see run-scm.sh --help]" >&2
    exit 2
fi
RECORDS=$1 RUNS=$2
FLAGS=("${@:3}")
BACKBONE=${BACKBONE:-backbones/smollm2-135m}
MODERNBERT=${MODERNBERT:-$RUNS/random-modernbert}
read -ra TEST <<< "${TEST_FLAGS:-}"
read -ra CAUSAL <<< "${CAUSAL_FLAGS:-}"
read -ra PARTIAL <<< "${PARTIAL_FLAGS:-}"
read -ra ENCODER <<< "${MODERNBERT_FLAGS:-}"
run() { bash "scripts/run-$1.sh" "${@:2}"; }
missing() { [[ ! -e $1 ]]; }
test_row() {  # row, model, data, flags
    missing "$RUNS/metrics/$1" && run "$1" test --model-path "$RUNS/models/$2" --data-dir "$3" \
        --output-dir "$RUNS/metrics/$1" "${TEST[@]}" "${@:4}"
    return 0
}
missing "$BACKBONE" && bash scripts/get-backbone.sh smollm2-135m "$BACKBONE"
missing "$MODERNBERT" && bash scripts/get-backbone.sh random-modernbert "$MODERNBERT" --corpus "$RECORDS"
DATA=$RUNS/data ENCODER_DATA=$RUNS/data-modernbert
missing "$DATA" && run data "$DATA" "$BACKBONE" --input-dir "$RECORDS" --max-length "${MAX_LENGTH:-4096}"
missing "$ENCODER_DATA" && run data "$ENCODER_DATA" "$MODERNBERT" --input-dir "$RECORDS" \
    --max-length "${MAX_LENGTH:-4096}"

for method in tfidf length; do
    missing "$RUNS/metrics/$method" && run floor "$method" --data-dir "$DATA" \
        --output-dir "$RUNS/metrics/$method"
done
run modernbert-full --output-dir "$RUNS/models/modernbert" --data-dir "$ENCODER_DATA" \
    --base-model-path "$MODERNBERT" --resume "${ENCODER[@]}"
test_row modernbert-full modernbert "$ENCODER_DATA"
test_row modernbert-partial modernbert "$ENCODER_DATA" "${PARTIAL[@]}"
run scm --output-dir "$RUNS/models/scm" --data-dir "$DATA" --base-model-path "$BACKBONE" \
    --resume "${FLAGS[@]}"
test_row scm scm "$DATA" "${CAUSAL[@]}"
run qwen-full --output-dir "$RUNS/models/qwen" --data-dir "$DATA" --base-model-path "$BACKBONE" \
    --resume "${FLAGS[@]}"
test_row qwen-full qwen "$DATA" "${CAUSAL[@]}"
test_row qwen-partial qwen "$DATA" "${CAUSAL[@]}"
[[ ${ABLATIONS:-yes} == no ]] || TEST_FLAGS="${TEST[*]} ${CAUSAL[*]}" run ablations "$DATA" "$BACKBONE" "$RUNS" "${FLAGS[@]}"

bash scripts/make-tables.sh "$RUNS" --overwrite
bash scripts/make-figures.sh "$RUNS" --overwrite
bash scripts/make-examples.sh "$RUNS/metrics/scm" --overwrite
