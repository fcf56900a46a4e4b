#!/usr/bin/env bash
# Takes what a training with --lora-rank changed, small enough to release.
#   bash scripts/pack-scm.sh --model-path SCM --backbone smollm2-135m --output-dir checkpoints/NAME
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec python -m model pack-scm "$@"
