#!/usr/bin/env bash
# The floor: what a bag of words, or the response's length alone, reaches on the same splits.
#   bash scripts/run-floor.sh tfidf|length --data-dir scm --output-dir metrics/tfidf
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh
exec python -m test baselines "$@"
