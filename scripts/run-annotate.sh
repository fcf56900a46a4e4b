#!/usr/bin/env bash
# Judged responses → FineHarm records, annotated down to the word; or compares two annotations.
#   bash scripts/run-annotate.sh --input responses.jsonl --output-dir runs/mine --annotator mil
#   bash scripts/run-annotate.sh --compare runs/mine runs/others
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh
exec python -m annotation annotate "$@"
