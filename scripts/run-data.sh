#!/usr/bin/env bash
# FineHarm records → token-labelled splits for one tokenizer.
#   bash scripts/run-data.sh OUTPUT_DIR /path/to/tokenizer [--input-dir FineHarm] [--flags]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh
NAMES=(--output-dir --tokenizer-path)  # of the two words that come first
ARGS=()
while [[ $# -gt 0 && "$1" != -* && ${#NAMES[@]} -gt 0 ]]; do
    ARGS+=("${NAMES[0]}" "$1")
    NAMES=("${NAMES[@]:1}")
    shift
done
exec python -m utils.prepare_data "${ARGS[@]}" "$@"
