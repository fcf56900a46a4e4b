#!/usr/bin/env bash
# Speed of data preparation, training and scoring against padding everything to 4,096 tokens.
#   bash scripts/run-benchmark.sh [--base-model-path DIR] [--samples N] [--output benchmark.json]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh
BACKBONE=backbones/smollm2-135m
if [[ " $* " != *" --base"[-_]"model"[-_]"path"* && " $* " != *" --help "* && ! -d $BACKBONE ]]; then
    bash scripts/get-backbone.sh smollm2-135m $BACKBONE
fi
exec python -m train.benchmark --base-model-path $BACKBONE "$@"
