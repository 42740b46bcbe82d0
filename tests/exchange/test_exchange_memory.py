"""What import and export take beside the parameters: of the files a tensor at a time, of what is written some parts of a parameter."""

import math
import os
import pathlib
import subprocess
import sys

import ml_dtypes
import pytest
from published_models import config_of, write_model
from published_tokenizer import write_tokenizer

pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")

SHARD = 130_000_000  # bytes at most
SIZES = {"hidden_size": 512, "intermediate_size": 6144, "num_hidden_layers": 24, "vocab_size": 8192, "head_dim": 128}
MEASURED = '''
import pathlib, sys, threading, time
from jaxalign.exchange import export_model, import_model

def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096

run, *folders = sys.argv[1:]
run = import_model if run == "import" else lambda source, to: export_model(source, to, largest_shard=SHARD)
source, to = map(pathlib.Path, folders)
run(source / "small", to / "small")  # what is loaded and compiled once is there now
before, most, done = resident(), 0, False

def watch():
    global most
    while not done:
        most = max(most, resident())
        time.sleep(0.002)

threading.Thread(target=watch, daemon=True).start()
parameters = run(source / "large", to / "large")["parameters"]
done = True
print(most - before - 4 * parameters)
'''


def extra(run, source, to):
    """Bytes beside the parameters as checkpoints hold them, in float32; measured in a process of its own on one device."""
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    command = [sys.executable, "-c", MEASURED.replace("SHARD", str(SHARD)), run, str(source), str(to)]
    return int(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.split()[-1])


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/statm").exists(), reason="reads how much memory is used from /proc")
def test_import_and_export_take_little_beside_the_parameters_though_one_of_these_is_larger_than_a_shard(tmp_path):
    published, imported, exported = (tmp_path / name for name in ("published", "imported", "exported"))
    for name, sizes in (("small", {}), ("large", SIZES)):
        write_model(published / name, config_of("llama") | sizes, ml_dtypes.bfloat16, largest_shard=SHARD)
        write_tokenizer(published / name)
    shard = max(path.stat().st_size for path in (published / "large").glob("*.safetensors"))
    # All layers' kernels of a kind are one parameter.
    assert 4 * math.prod(SIZES[name] for name in ("num_hidden_layers", "hidden_size", "intermediate_size")) > 2 * shard
    assert extra("import", published, imported) <= 1.3 * shard
    assert extra("export", imported, exported) <= 1.3 * shard  # which holds them in bfloat16, and one at a time in float32
