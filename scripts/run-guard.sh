#!/usr/bin/env bash
# Guards that others trained, on the same splits: a text classifier, a generative guard, a stream.
#   bash scripts/run-guard.sh classifier|generative|stream --model-path DIR --data-dir scm --output-dir metrics/guard
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec python -m test guard "$@"
