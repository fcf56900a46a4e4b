#!/usr/bin/env bash
# The gateway: any OpenAI-compatible LLM behind the monitor, a session API, a page to look at.
#   bash scripts/run-gateway.sh                       # all of it here: open http://127.0.0.1:8800
#   bash scripts/run-gateway.sh --model-path scm-0.5b --upstream http://127.0.0.1:8000/v1
#   bash scripts/run-gateway.sh replicas --replicas 2 …   # on Ray Serve
# Without --model-path it builds the released monitor, without --upstream a small LLM of its own.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
if [[ " $* " != *" --help "* ]]; then
    [[ " $* " == *" --upstream"* || " $* " == *" --llm"* ]] ||
        bash scripts/get-backbone.sh smollm2-135m backbones/smollm2-135m
    [[ " $* " == *" --model-path"* ]] || bash scripts/get-scm.sh scm-135m backbones/scm-135m
fi
if [[ "${1:-}" == replicas ]]; then  # needs requirements-serve.txt
    exec python -m serve "$@"
fi
exec python -m serve gateway "$@"
