#!/usr/bin/env bash
# Speed of data preparation, training and scoring against padding everything to 4,096 tokens.
#   bash scripts/run-benchmark.sh [--base-model-path DIR] [--samples N] [--output benchmark.json]
# Speed of the monitor: a further token, many streams, generation with and without it.
#   bash scripts/run-benchmark.sh monitor [--base-model-path DIR] [--positions 128 2048]
# Speed of a verdict on a prompt beside its prefill, and of fits on more and more prompts.
#   bash scripts/run-benchmark.sh prompts [--base-model-path DIR] [--tokens 500] [--samples N …]
# Speed of detection: scoring against a plain pass, prefixes against padding, all thresholds.
#   bash scripts/run-benchmark.sh detection [--encoder-path DIR] [--samples N]
# Speed of the gateway: what it adds to an upstream, many streams for long; LiteLLM through it.
#   bash scripts/run-benchmark.sh gateway --model-path SCM [--streams N] [--seconds N]
#   bash scripts/run-benchmark.sh litellm --model-path SCM --litellm /path/to/litellm
#   bash scripts/run-benchmark.sh replicas --model-path SCM   # needs requirements-serve.txt
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
case "${1:-}" in gateway | litellm | replicas) exec python -m benchmarks "$@" ;; esac
BACKBONE=backbones/smollm2-135m ENCODER=backbones/random-modernbert
needs() {  # backbone's name, its folder, the option that names another
    [[ " ${*:4} " == *" $3"* || " ${*:4} " == *" --help "* || -d $2 ]] ||
        bash scripts/get-backbone.sh "$1" "$2"
}
needs smollm2-135m $BACKBONE --base "$@"
if [[ "${1:-}" == detection ]]; then
    needs random-modernbert $ENCODER --encoder "$@"
    exec python -m benchmarks detection --base-model-path $BACKBONE --encoder-path $ENCODER "${@:2}"
fi
if [[ "${1:-}" == monitor || "${1:-}" == prompts ]]; then
    exec python -m benchmarks "$1" --base-model-path $BACKBONE "${@:2}"
fi
exec python -m benchmarks training --base-model-path $BACKBONE "$@"
