#!/usr/bin/env bash
# Tests of the same responses side by side, source by source; what calibrating on a source brings.
#   bash scripts/compare-sources.sh metrics/scm metrics/tfidf --output-dir metrics/sources --calibrate-on 100
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec python -m test sources "$@"
