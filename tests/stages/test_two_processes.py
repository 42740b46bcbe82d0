"""A stage on two processes: the figures of one, written once; what cannot be split is refused at its start."""

import json

import pytest
import tiny_stages
from two_processes import run_in_two

from jaxalign import config as configs
from jaxalign.stages import train_stage

PROCESS = """
folder, = given
from jaxalign import config as configs
from jaxalign.errors import ConfigError
from jaxalign.stages import train_stage
read = lambda name: configs.from_json(open(f"{folder}/{name}.json").read())
for steps in (2, 4):  # stopped and taken up again
    config = read("sft").unlock()
    config.steps = steps
    done = train_stage(config.lock(), folder + "/sft")
try:
    train_stage(read("ppo"), folder + "/ppo")
except ConfigError as error:
    print("REFUSED", error)
print("TOKENS", done["tokens"])
"""


@pytest.mark.slow
def test_two_processes_train_as_one_and_the_first_one_writes(tmp_path):
    # Rows of different lengths: what one process counts is not half of all.
    rows = [{"prompt": f"{n}?", "answer": "four " * (1 + n % 5)} for n in range(24)]
    source = dict(path=str(tiny_stages.jsonl(tmp_path / "rows.jsonl", [*rows, {"prompt": "x", "answer": ""}])),
                  shape="prompt_response")
    config = tiny_stages.config("sft", batch_size=8, mesh=dict(data=4), optimizer=dict(schedule="constant"),
                                data=dict(train=[source], dev=[source], on_bad_row="skip", packing="none"))
    (tmp_path / "sft.json").write_text(configs.to_json(config))
    (tmp_path / "ppo.json").write_text(configs.to_json(tiny_stages.config("ppo", batch_size=8)))
    said = run_in_two(PROCESS, tmp_path, timeout=240)

    alone = train_stage(config, tmp_path / "alone")
    done = json.loads((tmp_path / "sft" / "done.json").read_text())
    assert done["after"] == pytest.approx(alone["after"], rel=1e-5) and done["steps"] == 4
    assert done["tokens"] == alone["tokens"] and all(f"TOKENS {alone['tokens']}" in text for text in said)
    names = ("step", "tokens", "truncated")
    got, expected = ([{key: row[key] for key in names if key in row} for row in tiny_stages.metrics(tmp_path / name)]
                     for name in ("sft", "alone"))
    assert [row for row in got if "tokens" in row] == [row for row in expected if "tokens" in row]
    written = {path.name for path in (tmp_path / "sft").iterdir()}
    assert written == {"checkpoints", "config.json", "done.json", "metrics.jsonl", "tensorboard",
                       "bad_rows.jsonl", "bad_dev_rows.jsonl"}
    assert "sft train data: 24 rows" in said[0] and "sft train data" not in said[1]
    assert all("REFUSED ppo: draws its samples in one process, JAX runs in 2; train it on one host" in s for s in said)
    assert not (tmp_path / "ppo").exists()
