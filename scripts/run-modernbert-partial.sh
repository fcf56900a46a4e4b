#!/usr/bin/env bash
# Partial detection: the model of run-modernbert-full.sh encodes and judges every prefix anew.
#   bash scripts/run-modernbert-partial.sh test --model-path modernbert --data-dir baseline-modernbert --output-dir metrics/modernbert-partial
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
if [[ "${1:-}" != test ]]; then
    echo "error: nothing is trained here; train with scripts/run-modernbert-full.sh, then: $0 test …" >&2
    exit 2
fi
exec python -m test modernbert modernbert-partial "${@:2}"
