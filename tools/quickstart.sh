#!/usr/bin/env bash
# From random weights to an aligned assistant, measured: makes .venv on the first call, needs no network after it.
#
#   bash tools/quickstart.sh                               writes runs/quickstart/report.html
#   bash tools/quickstart.sh --config.seed=1 --workdir=D   whatever `jaxalign pipeline` takes
set -u
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

prepare_environment core
exec "$VENV_PYTHON" -m jaxalign pipeline --config="$ROOT/configs/quickstart.py" --workdir="$ROOT/runs/quickstart" "$@"
