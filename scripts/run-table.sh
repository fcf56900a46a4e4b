#!/usr/bin/env bash
# Every row of the table on one corpus: data, trainings, tests, ablations, tables and figures.
#   bash scripts/run-table.sh RECORDS_DIR RUNS_DIR [flags of the SCM and Qwen trainings]
# Interrupted, it goes on where it was: a command whose folder is finished says so and ends.
# From the environment: BACKBONE and MODERNBERT (folders; default SmolLM2-135M and a small random
# ModernBERT), MAX_LENGTH (tokens), MODERNBERT_FLAGS, PARTIAL_FLAGS (of its partial test), TEST_FLAGS
# (of all model tests), CAUSAL_FLAGS (of SCM's and Qwen's), SEEDS ("42 43 44" trains SCM and Qwen
# once a seed), ABLATIONS=no, WORD_RULES (see run-ablations.sh).
set -euo pipefail
if [[ $# -lt 2 ]]; then
    echo "usage: $0 RECORDS_DIR RUNS_DIR [training flags; see run-scm.sh --help]" >&2
    exit 2
fi
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
RECORDS=${1%/} RUNS=${2%/} FLAGS=("${@:3}")
MODELS=$RUNS/models METRICS=$RUNS/metrics
read -ra TEST <<< "${TEST_FLAGS:-}"
read -ra CAUSAL <<< "${TEST_FLAGS:-} ${CAUSAL_FLAGS:-}"
read -ra PARTIAL <<< "${PARTIAL_FLAGS:-}"
read -ra ENCODER <<< "${MODERNBERT_FLAGS:-}"
read -ra SEED <<< "${SEEDS:-42}"
LENGTH=(--max-length "${MAX_LENGTH:-4096}")
run() { bash "scripts/$1.sh" "${@:2}"; }

# backbones and data
[[ -n ${BACKBONE:-} ]] || run get-backbone smollm2-135m "${BACKBONE:=backbones/smollm2-135m}"
[[ -n ${MODERNBERT:-} ]] ||
    run get-backbone random-modernbert "${MODERNBERT:=$RUNS/random-modernbert}" --corpus "$RECORDS"
run run-data "$RUNS/data" "$BACKBONE" --input-dir "$RECORDS" "${LENGTH[@]}"
run run-data "$RUNS/data-modernbert" "$MODERNBERT" --input-dir "$RECORDS" "${LENGTH[@]}"

# baselines
run run-floor tfidf --data-dir "$RUNS/data" --output-dir "$METRICS/tfidf"
run run-floor length --data-dir "$RUNS/data" --output-dir "$METRICS/length"

# ModernBERT, full and partial detection
M=(--data-dir "$RUNS/data-modernbert" --model-path "$MODELS/modernbert")
run run-modernbert-full --output-dir "$MODELS/modernbert" --data-dir "$RUNS/data-modernbert" \
    --base-model-path "$MODERNBERT" --resume "${ENCODER[@]}"
run run-modernbert-full test "${M[@]}" --output-dir "$METRICS/modernbert-full" "${TEST[@]}"
run run-modernbert-partial test "${M[@]}" --output-dir "$METRICS/modernbert-partial" \
    "${TEST[@]}" "${PARTIAL[@]}"

# SCM and Qwen, once a seed
for S in "${SEED[@]}"; do
    END=-$S && [[ $S != "${SEED[0]}" ]] || END=
    T=(--data-dir "$RUNS/data" --base-model-path "$BACKBONE" --resume "${FLAGS[@]}" --seed "$S")
    run run-scm --output-dir "$MODELS/scm$END" "${T[@]}"
    run run-scm test --model-path "$MODELS/scm$END" --data-dir "$RUNS/data" \
        --output-dir "$METRICS/scm$END" "${CAUSAL[@]}"
    run run-qwen-full --output-dir "$MODELS/qwen$END" "${T[@]}"
    Q=(--model-path "$MODELS/qwen$END" --data-dir "$RUNS/data" "${CAUSAL[@]}")
    run run-qwen-full test "${Q[@]}" --output-dir "$METRICS/qwen-full$END"
    run run-qwen-partial test "${Q[@]}" --output-dir "$METRICS/qwen-partial$END"
done

# ablations
if [[ ${ABLATIONS:-yes} != no ]]; then
    run run-data "$RUNS/data-words-all" "$BACKBONE" --input-dir "$RECORDS" "${LENGTH[@]}" \
        --word-rule all
    WORD_RULES="all=$RUNS/data-words-all ${WORD_RULES:-}" TEST_FLAGS="${CAUSAL[*]}" \
        run run-ablations "$RUNS/data" "$BACKBONE" "$RUNS" "${FLAGS[@]}" --seed "${SEED[0]}"
fi

run make-tables "$RUNS" --overwrite
run make-figures "$RUNS" --overwrite
run make-examples "$METRICS/scm" --overwrite
