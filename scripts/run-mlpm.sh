#!/usr/bin/env bash
# Judges prompts before anything is generated: the Multi-Layer Prototype Moderator.
#   bash scripts/run-mlpm.sh --prompts prompts.jsonl --base-model-path LLM --output-dir runs/mlpm
#   bash scripts/run-mlpm.sh test --moderator-path runs/mlpm --prompts prompts.jsonl \
#       --base-model-path LLM --output-dir metrics/mlpm
#   bash scripts/run-mlpm.sh floor tfidf|length --prompts prompts.jsonl --output-dir metrics/tfidf
#   bash scripts/run-mlpm.sh curves --prompts prompts.jsonl --base-model-path LLM \
#       --output-dir runs/curves   # each layer alone, C, prompts of a class, classes one by one
#   bash scripts/run-mlpm.sh add-class --name X --examples F --moderator-path runs/mlpm …
#   bash scripts/run-mlpm.sh remove-class --name X --moderator-path runs/mlpm --output-dir runs/less
# With the monitor: a lower threshold for responses to flagged prompts, and what it is worth.
#   bash scripts/run-mlpm.sh prior --metrics-dir metrics/scm --input-dir CORPUS --moderator-path M \
#       --monitor-path SCM --output-file monitor.json
#   bash scripts/run-mlpm.sh with-monitor --metrics-dir metrics/scm --input-dir CORPUS \
#       --moderator-path M --monitor-path SCM --settings monitor.json --output-dir metrics/gate
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
case "${1:-}" in
    test) exec python -m test prompts "${@:2}" ;;
    curves) exec python -m test prompt-curves "${@:2}" ;;
    floor) exec python -m test prompt-baselines "${@:2}" ;;
    with-monitor) exec python -m test with-monitor "${@:2}" ;;
    add-class | remove-class | prior) exec python -m moderator "$@" ;;
    train) shift ;;
esac
exec python -m moderator train "$@"
