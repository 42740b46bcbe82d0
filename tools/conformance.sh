#!/usr/bin/env bash
# Compares the objectives and models, values and gradients, with independent public implementations (TRL, transformers,
# PEFT, verl, rlax, rax), prints a table, and fails where a row does not hold. They take several GiB, so they go into an environment of
# their own, .conformance-venv, made on the first call. JAXALIGN_CONFORMANCE_VENV=/path puts it somewhere else.
#
#   bash tools/conformance.sh                             writes conformance.json
#   bash tools/conformance.sh --json=FILE --only=dpo --seeds=20
#   bash tools/conformance.sh --out=experiments/conformance   the page of all rows and its figures beside it
#   bash tools/conformance.sh --goldens                   writes tests/golden/families.json and peft.json afresh
#
# How a row is made, and how to add one: tests/conformance/run.py.
set -u
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

prepare_peers conformance JAXALIGN_CONFORMANCE_VENV
# On the CPU, from nothing but what is installed; TRL's notice that its experimental parts may change is known.
export JAX_PLATFORMS=cpu CUDA_VISIBLE_DEVICES= HF_HUB_OFFLINE=1 TRL_EXPERIMENTAL_SILENCE=1 PYTHONUNBUFFERED=1
if [ "${1:-}" = --goldens ]; then
  "$VENV_PYTHON" "$ROOT/tests/golden/make_families.py" && exec "$VENV_PYTHON" "$ROOT/tests/golden/make_peft.py"
  exit 1
fi
exec "$VENV_PYTHON" "$ROOT/tests/conformance/run.py" "$@"
