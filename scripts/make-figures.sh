#!/usr/bin/env bash
# Test folders → the figures, PNG and PDF, from their predictions.npz alone.
#   bash scripts/make-figures.sh RUNS_DIR [--output-dir DIR]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec python -m reports figures "$@"
