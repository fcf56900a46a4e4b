#!/usr/bin/env bash
# The baselines: what a bag of words, or the response's length alone, reaches on the same splits.
#   bash scripts/run-floor.sh tfidf|length --data-dir scm --output-dir metrics/tfidf
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec python -m test baselines "$@"
