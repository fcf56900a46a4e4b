#!/usr/bin/env bash
# A test's scores → settings of a monitor that promise a share of false alarms.
#   bash scripts/calibrate-monitor.sh metrics/scm-0.5b --rule delay-k --k 4 --target-false-alarm 0.01 --output-file monitor.json
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec python -m monitor calibrate "$@"
