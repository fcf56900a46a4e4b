#!/usr/bin/env bash
# Trains Qwen for full detection (the holistic scorer alone), or tests it on complete responses.
#   bash scripts/run-qwen-full.sh --output-dir qwen-0.5b --data-dir scm --base-model-path /path/to/qwen
#   bash scripts/run-qwen-full.sh test --model-path qwen-0.5b --data-dir scm --output-dir metrics/qwen-full
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
if [[ "${1:-}" == test ]]; then
    exec python -m test causal qwen-full "${@:2}"
fi
[[ "${1:-}" == train ]] && shift
ARGS=(  # run-scm.sh's recipe but for the loss
    --alpha 0  # the holistic loss alone
    --beta 0  # no logic-consistency loss
    --best-metric full_auroc
)
exec bash scripts/run-scm.sh train "${ARGS[@]}" "$@"
