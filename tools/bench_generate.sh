#!/usr/bin/env bash
# Tokens a second of the rollout engine beside `transformers.generate` and Tunix's sampler: tools/bench_generate.py, which
# says what is measured and how. The peers take several GiB, so they go into an environment of their own, .bench-venv,
# made on the first call. JAXALIGN_BENCH_VENV=/path puts it somewhere else. On a GPU, install jax[cuda12] or jax[cuda13]
# into it; each side takes what its library finds.
#
#   bash tools/bench_generate.sh --json=FILE --runs=5 --dtypes=float32
set -u
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

VENV_VARIABLE=JAXALIGN_BENCH_VENV
VENV="${JAXALIGN_BENCH_VENV:-$ROOT/.bench-venv}"
NEEDED_MIB=4000
PYTHONS="python3.11 python3.12 python3.13 python3 python" # the peers keep up with the newest Python last
prepare_environment bench
exec "$VENV_PYTHON" "$ROOT/tools/bench_generate.py" "$@"
