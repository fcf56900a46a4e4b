#!/usr/bin/env bash
# Test folders → the figures, PNG and PDF, from their predictions.npz alone; of aligned policies'
# tests (run-align.sh test) harm over the distance from the reference, from their values.npz.
#   bash scripts/make-figures.sh RUNS_DIR [--output-dir DIR]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec python -m reports figures "$@"
