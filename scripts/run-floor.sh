#!/usr/bin/env bash
# The floor: what a bag of words, or the response's length alone, reaches on the same splits.
#   bash scripts/run-floor.sh tfidf|length --data-dir scm --output-dir metrics/tfidf
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh
ARGS=()
if [[ $# -gt 0 && "$1" != -* ]]; then
    ARGS=(--method "$1")
    shift
fi
exec python -m test.floor "${ARGS[@]}" "$@"
