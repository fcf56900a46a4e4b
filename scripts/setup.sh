#!/usr/bin/env bash
# Makes the environment the other scripts run in; does nothing where it stands already.
# An active virtual environment is used as it is, otherwise .venv is made with $PYTHON (python3).
# The other scripts source it; it takes them to the root of the repository.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV="${VIRTUAL_ENV:-$PWD/.venv}"
if [[ ! -x "$VENV/bin/python" ]]; then
    "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        { echo "error: Python 3.11 or newer is needed; PYTHON=/path/to/python names one" >&2; exit 2; }
    echo "making $VENV"
    "${PYTHON:-python3}" -m venv "$VENV" || { rm -rf "$VENV"; exit 2; }
fi
WANTED="$(cksum < requirements.txt)"
STAMP="$VENV/.scm-requirements"
if [[ "$(cat "$STAMP" 2>/dev/null)" != "$WANTED" ]]; then
    echo "installing requirements.txt into $VENV"
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile -r requirements.txt
    echo "$WANTED" > "$STAMP"
fi
export VIRTUAL_ENV="$VENV" PATH="$VENV/bin:$PATH"
