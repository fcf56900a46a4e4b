#!/usr/bin/env bash
# Trains SCM, or tests it.
#   bash scripts/run-scm.sh --output-dir scm-0.5b --data-dir scm --base-model-path /path/to/qwen
#   bash scripts/run-scm.sh test --model-path scm-0.5b --data-dir scm --output-dir metrics/scm-0.5b
# Several devices: LAUNCHER="torchrun --standalone --nproc_per_node 2" bash scripts/run-scm.sh …
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
if [[ "${1:-}" == test ]]; then
    exec python -m test causal scm "${@:2}"
fi
[[ "${1:-}" == train ]] && shift
read -ra LAUNCH <<< "${LAUNCHER:-python}"
ARGS=(  # arXiv 2506.09996, released recipe
    --epochs 3
    --batch-size 16  # 8 a device × 2 accumulation steps
    --micro-batch-size 8
    --learning-rate 1e-4
    --weight-decay 0.01
    --scheduler exponential
    --lr-gamma 0.99  # per optimiser step
    --alpha 0.6  # token loss; the holistic loss has 1 − α
    --beta 1.0  # logic-consistency loss
    --seed 42
)
exec "${LAUNCH[@]}" -m train qwen "${ARGS[@]}" "$@"
