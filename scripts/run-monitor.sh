#!/usr/bin/env bash
# Shows the monitor at work: a language model's answer, or a recorded one, until it is stopped.
#   bash scripts/run-monitor.sh --model-path scm-0.5b --llm DIR [--prompt TEXT]
#   bash scripts/run-monitor.sh --model-path scm-0.5b --replay FILE [--id ID]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec python -m monitor show "$@"
