"""Every test runs on eight simulated CPU devices, with warnings as errors and rank promotion forbidden."""

import importlib.metadata
import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Devices that wait for each other in a collective each hold a thread; with as many threads as devices none may be left.
os.environ.setdefault("PJRT_NPROC", "32")
# Tests compile far longer than they run: without LLVM's optimisations they take half the time, and
# without the emitters that write a kernel in MLIR first seven tenths of that.
os.environ["XLA_FLAGS"] = (os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
                           " --xla_backend_optimization_level=0")
# Later versions of JAX have no such choice; 0.12 compiles faster by itself.
if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11):
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

import jax  # noqa: E402
import pytest  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[1]
SHARED = pathlib.Path(os.environ.get("JAXALIGN_SHARED_DATA", ROOT.parent / "shared" / "data"))


def pytest_configure(config):
    jax.config.update("jax_numpy_rank_promotion", "raise")
    # Processes that test side by side must not read what another has half written.
    cache = ROOT / ".jax_cache" / os.environ.get("PYTEST_XDIST_WORKER", "")
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="run the slow tests too")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--all"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="slow: runs under --all"))


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real data sets; tests that need it skip where it is not there."""
    if not SHARED.is_dir():
        pytest.skip(f"real data not found at {SHARED.name}; set JAXALIGN_SHARED_DATA")
    return SHARED
