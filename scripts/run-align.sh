#!/usr/bin/env bash
# Aligns a language model with preference pairs; SCM's verdicts on tokens weigh them in TokenDPO.
#   bash scripts/run-align.sh sft --base-model-path LLM --data-dir preferences.jsonl --output-dir sft
#   bash scripts/run-align.sh dpo --base-model-path LLM --data-dir preferences.jsonl --output-dir dpo
#   bash scripts/run-align.sh tokendpo --annotator-model SCM --base-model-path LLM \
#       --data-dir preferences.jsonl --output-dir tokendpo
#   bash scripts/run-align.sh test --model-path tokendpo --data-dir preferences.jsonl \
#       --prompts prompts.jsonl --judges scm=JUDGE tfidf=RECORDS --output-dir metrics/tokendpo
#   bash scripts/run-align.sh pairs --model-path LLM --annotator-model SCM --prompts prompts.jsonl \
#       --output-dir own   # on policy: its own answers, ranked by SCM; --data-dir own/pairs.jsonl
#   bash scripts/run-align.sh labels --annotator-model SCM --data-dir preferences.jsonl \
#       --output-dir runs/labels   # does SCM agree with the people who judged the pairs?
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
case "${1:-}" in
    test) exec python -m test align "${@:2}" ;;
    labels | pairs) exec python -m align "$@" ;;
    sft | dpo | tokendpo) exec python -m align train --method "$@" ;;
esac
echo "usage: $0 sft|dpo|tokendpo|pairs|labels|test [--flags]; each has its own --help" >&2
exit 2
