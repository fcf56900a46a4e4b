#!/usr/bin/env bash
# The whole way on the embedded corpus: set up, build the pretrained 135M backbone, prepare the data,
# train, test, compare with the baselines. Run again, it goes on where it was interrupted.
#   bash scripts/run-demo.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
BACKBONE=backbones/smollm2-135m
RECIPE=(  # for 240 records and two processor cores; the paper's recipe is run-scm.sh's own
    --epochs 4
    --learning-rate 2e-4  # of the rates tried the best on validation, see docs/results.md
    --scheduler linear
    --warmup-ratio 0.1
    --attention eager
    --eval-steps 0.5
    --logging-steps 5
)
bash scripts/get-backbone.sh smollm2-135m $BACKBONE
bash scripts/run-data.sh demo/data $BACKBONE --input-dir FineHarm/sample
bash scripts/run-scm.sh --output-dir demo/scm --data-dir demo/data --base-model-path $BACKBONE \
    "${RECIPE[@]}" --resume
bash scripts/run-floor.sh tfidf --data-dir demo/data --output-dir demo/tfidf
bash scripts/run-floor.sh length --data-dir demo/data --output-dir demo/length
bash scripts/run-scm.sh test --model-path demo/scm --data-dir demo/data --output-dir demo/metrics
echo "the figure is demo/metrics/stop_positions.png; to watch the monitor:"
echo "bash scripts/run-monitor.sh --model-path demo/scm --replay FineHarm/sample/test.json"
