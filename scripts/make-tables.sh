#!/usr/bin/env bash
# All result tables from the tests' output folders, beside the paper's: Markdown, LaTeX and CSV;
# of aligned policies' tests (run-align.sh test) alignment.md, alignment.csv, alignment_paired.csv.
#   bash scripts/make-tables.sh metrics
#   bash scripts/make-tables.sh runs --output-dir tables --paper-backbone 7b
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec python -m reports tables "$@"
