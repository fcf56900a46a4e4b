#!/usr/bin/env bash
# Every row of the table of alignment: the policy as it is, SFT, DPO, TokenDPO, its controls and
# ablations, other βs, and pairs of the policy's own answers; trainings, tests, table and figure.
#   bash scripts/run-align-table.sh PREFERENCES PROMPTS ANNOTATOR RUNS_DIR [flags of the trainings]
# Interrupted, it goes on where it was: a command whose folder is finished says so and ends.
# From the environment: POLICY (folder; default SmolLM2-135M), JUDGES ("scm=DIR tfidf=DIR", see
# run-align.sh test --help), SEEDS ("42 43 44" trains each row once a seed), BETAS (of DPO and
# TokenDPO beside 0.1, first seed alone), TEST_FLAGS (of all tests), PAIRS_FLAGS, ON_POLICY=no.
set -euo pipefail
if [[ $# -lt 4 || -z ${JUDGES:-} ]]; then
    echo "usage: JUDGES=… $0 PREFERENCES PROMPTS ANNOTATOR RUNS_DIR [training flags]" >&2
    exit 2
fi
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
PREFERENCES=$1 PROMPTS=$2 ANNOTATOR=$3 RUNS=${4%/} FLAGS=("${@:5}")
read -ra JUDGE <<< "$JUDGES"
read -ra TEST <<< "${TEST_FLAGS:-}"
read -ra SEED <<< "${SEEDS:-42}"
run() { bash "scripts/$1.sh" "${@:2}"; }

[[ -n ${POLICY:-} ]] || run get-backbone smollm2-135m "${POLICY:=backbones/smollm2-135m}"
TRAIN=(--base-model-path "$POLICY" --state-cache "$RUNS/states" --resume "${FLAGS[@]}")
TEST+=(--prompts "$PROMPTS" --data-dir "$PREFERENCES" --judges "${JUDGE[@]}")

run run-align test --model-path "$POLICY" --output-dir "$RUNS/metrics/as-it-is" "${TEST[@]}"

# row NAME SEED METHOD FLAGS…: a training and its test; SEED is part of the folder's name
row() {
    local folder=$1-$2
    run run-align "$3" --output-dir "$RUNS/models/$folder" --seed "$2" "${TRAIN[@]}" "${@:4}"
    run run-align test --model-path "$RUNS/models/$folder" \
        --output-dir "$RUNS/metrics/$folder" "${TEST[@]}" ${NAME:+--name "$NAME"}
}
SCM=(--annotator-model "$ANNOTATOR") NAME=  # not the environment's
for S in "${SEED[@]}"; do
    D=(--data-dir "$PREFERENCES")
    row sft "$S" sft "${D[@]}"
    row dpo "$S" dpo "${D[@]}"
    row tokendpo "$S" tokendpo "${D[@]}" "${SCM[@]}"
    for W in even random mean-one mask; do
        row "tokendpo-$W" "$S" tokendpo "${D[@]}" "${SCM[@]}" --weights "$W"
    done
    row tokendpo-soft "$S" tokendpo "${D[@]}" "${SCM[@]}" --soft
    row tokendpo-half "$S" tokendpo "${D[@]}" "${SCM[@]}" --alpha 0.5
done
for B in ${BETAS:-}; do
    row "dpo-beta-$B" "${SEED[0]}" dpo --data-dir "$PREFERENCES" --beta "$B"
    row "tokendpo-beta-$B" "${SEED[0]}" tokendpo --data-dir "$PREFERENCES" "${SCM[@]}" --beta "$B"
done
if [[ ${ON_POLICY:-yes} != no ]]; then
    read -ra MORE <<< "${PAIRS_FLAGS:-}"
    run run-align pairs --model-path "$POLICY" "${SCM[@]}" --prompts "$PROMPTS" \
        --output-dir "$RUNS/own" "${MORE[@]}"
    O=(--data-dir "$RUNS/own/pairs.jsonl")
    NAME="DPO, own answers" row dpo-own "${SEED[0]}" dpo "${O[@]}"
    NAME="TokenDPO, own answers" row tokendpo-own "${SEED[0]}" tokendpo "${O[@]}" "${SCM[@]}"
fi
run make-tables "$RUNS/metrics" --overwrite
run make-figures "$RUNS/metrics" --overwrite
