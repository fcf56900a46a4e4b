#!/usr/bin/env bash
# A test's folder → one HTML file of its responses, each token coloured by its score.
#   bash scripts/make-examples.sh metrics/scm-0.5b [--output examples.html] [--flags]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec python -m reports examples "$@"
