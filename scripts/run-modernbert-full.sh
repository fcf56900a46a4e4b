#!/usr/bin/env bash
# Trains ModernBERT for full detection, or tests it on complete responses.
#   bash scripts/run-modernbert-full.sh --output-dir modernbert --data-dir baseline-modernbert --base-model-path /path/to/ModernBERT-base
#   bash scripts/run-modernbert-full.sh test --model-path modernbert --data-dir baseline-modernbert --output-dir metrics/modernbert-full
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
if [[ "${1:-}" == test ]]; then
    exec python -m test modernbert modernbert-full "${@:2}"
fi
[[ "${1:-}" == train ]] && shift
read -ra LAUNCH <<< "${LAUNCHER:-python}"
ARGS=(  # arXiv 2506.09996, released recipe of ModernBERT
    --epochs 1
    --batch-size 16  # 4 a device × 4 accumulation steps
    --micro-batch-size 4
    --learning-rate 2e-5
    --weight-decay 0.01
    --scheduler exponential
    --lr-gamma 0.995  # per optimiser step
    --best-metric full_auroc
    --seed 42
)
exec "${LAUNCH[@]}" -m train modernbert "${ARGS[@]}" "$@"
