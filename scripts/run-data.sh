#!/usr/bin/env bash
# FineHarm records → token-labelled splits for one tokenizer.
#   bash scripts/run-data.sh OUTPUT_DIR /path/to/tokenizer [--input-dir FineHarm] [--flags]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec python -m data prepare "$@"
