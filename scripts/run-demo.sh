#!/usr/bin/env bash
# The whole way on the embedded corpus: set up, build the pretrained 135M backbone, prepare the data,
# train, test, compare with the floor. Run again, it goes on where it was interrupted.
#   bash scripts/run-demo.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh
BACKBONE=backbones/smollm2-135m
[[ -d $BACKBONE ]] || bash scripts/get-backbone.sh smollm2-135m $BACKBONE
[[ -d demo/data ]] || bash scripts/run-data.sh demo/data $BACKBONE --input-dir FineHarm/sample
RECIPE=(  # for 240 records and two processor cores; the paper's recipe is run-scm.sh's own
    --epochs 4
    --learning-rate 2e-4  # of the rates tried the best on validation, see the README
    --scheduler linear
    --warmup-ratio 0.1
    --attention eager
    --eval-steps 0.5
    --logging-steps 5
)
bash scripts/run-scm.sh --output-dir demo/scm --data-dir demo/data --base-model-path $BACKBONE \
    "${RECIPE[@]}" --resume
for METHOD in tfidf length; do
    bash scripts/run-floor.sh $METHOD --data-dir demo/data --output-dir demo/$METHOD --overwrite
done
bash scripts/run-scm.sh test --model-path demo/scm --data-dir demo/data \
    --output-dir demo/metrics --overwrite
echo "the table is above, the figure is demo/metrics/stop_positions.png; to watch the monitor:"
echo "bash scripts/run-monitor.sh --model-path demo/scm --replay FineHarm/sample/test.json"
