#!/usr/bin/env bash
# Feeds the test split to the live monitor: does it stop every response where the test did?
#   bash scripts/check-live.sh METRICS_DIR --model-path SCM --input-dir FINEHARM
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec python -m test live "$@"
