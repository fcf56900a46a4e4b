#!/usr/bin/env bash
# Naive partial detection: the model of run-qwen-full.sh judges every prefix.
#   bash scripts/run-qwen-partial.sh test --model-path qwen-0.5b --data-dir scm --output-dir metrics/qwen-partial
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
if [[ "${1:-}" != test ]]; then
    echo "error: nothing is trained here; train with scripts/run-qwen-full.sh, then: $0 test …" >&2
    exit 2
fi
exec python -m test causal qwen-partial "${@:2}"
