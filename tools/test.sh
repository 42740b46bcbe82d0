#!/usr/bin/env bash
# Runs the tests: makes .venv on the first call, needs no network after it.
#
#   bash tools/test.sh                     the default run
#   bash tools/test.sh --all               the slow tests too
#   bash tools/test.sh tests/report -k svg whatever pytest takes
set -u
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

prepare_environment test
cd "$ROOT" || exit 1
# The tests simulate eight devices on the CPU; an accelerator that happens to be there must not take part.
export JAX_PLATFORMS=cpu PYTHONUNBUFFERED=1
# A process for each of up to four cores, a file at a time: most of a test's time is one compiler's thread. Named tests
# run in one process, without what it costs to start others.
case "$*" in "" | --all) set -- --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder "$@" ;; esac
exec "$VENV_PYTHON" -m pytest "$@"
