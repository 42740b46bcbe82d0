"""What an import takes beside the parameters: of the files a tensor at a time, of what is written some parts of a parameter."""

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

SIZES = {"hidden_size": 512, "intermediate_size": 8192, "num_hidden_layers": 24, "vocab_size": 8192, "head_dim": 128}
MEASURED = '''
import pathlib, sys, threading, time
from jaxalign.exchange import import_model

def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096

small, large, to = map(pathlib.Path, sys.argv[1:])
import_model(small, to / "small")  # what is loaded and compiled once is there now
before, most, done = resident(), 0, False

def watch():
    global most
    while not done:
        most = max(most, resident())
        time.sleep(0.002)

threading.Thread(target=watch, daemon=True).start()
parameters = import_model(large, to / "large")["parameters"]
done = True
print(most - before - 4 * parameters)
'''


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/statm").exists(), reason="reads how much memory is used from /proc")
def test_an_import_takes_little_beside_the_parameters_though_one_of_these_is_larger_than_a_shard(tmp_path):
    for name, sizes in (("small", {}), ("large", SIZES)):
        write_model(tmp_path / name, config_of("llama") | sizes, ml_dtypes.bfloat16, largest_shard=110_000_000)
        write_tokenizer(tmp_path / name)
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    command = [sys.executable, "-c", MEASURED, *(str(tmp_path / name) for name in ("small", "large", "to"))]
    extra = int(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.split()[-1])
    shard = max(path.stat().st_size for path in (tmp_path / "large").glob("*.safetensors"))
    # All layers' kernels of a kind are one parameter.
    assert 4 * math.prod(SIZES[name] for name in ("num_hidden_layers", "hidden_size", "intermediate_size")) > 3 * shard
    assert extra <= 1.3 * shard
