#!/usr/bin/env bash
# Tokens a second of the rollout engine beside `transformers.generate` and Tunix's sampler: tools/bench_generate.py, which
# says what is measured and how. The peers take several GiB, so they go into an environment of their own, .bench-venv,
# made on the first call. JAXALIGN_BENCH_VENV=/path puts it somewhere else. On a GPU, install jax[cuda12] or jax[cuda13]
# into it; each side takes what its library finds.
#
#   bash tools/bench_generate.sh --json=FILE --runs=5 --dtypes=float32
set -u
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

prepare_peers bench JAXALIGN_BENCH_VENV
exec "$VENV_PYTHON" "$ROOT/tools/bench_generate.py" "$@"
