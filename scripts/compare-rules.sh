#!/usr/bin/env bash
# Stopping rules side by side on a test's scores: which stops earliest at equal false alarms?
#   bash scripts/compare-rules.sh metrics/scm-0.5b --output-dir metrics/rules [--targets 0.05 0.1 0.2]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec python -m test rules "$@"
