#!/usr/bin/env bash
# Judged responses → FineHarm records, annotated down to the word; or compares two annotations.
#   bash scripts/run-annotate.sh mil --input responses.jsonl --output-dir runs/mine
#   bash scripts/run-annotate.sh compare runs/mine runs/others
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec python -m annotation "$@"
