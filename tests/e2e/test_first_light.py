"""The recipe on real text at a tiny size: every stage of `configs/first_light.py` runs and hands over."""

import importlib.util
import pathlib

import pytest

from jaxalign.pipeline import run_pipeline
from jaxalign.train.checkpoint import read_meta
from module_at import module_at

RECIPE = pathlib.Path(__file__).resolve().parents[2] / "configs" / "first_light.py"
MODEL = dict(width=32, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=16, mlp_dim=64, unroll=1)


@pytest.mark.slow
def test_the_whole_chain_on_real_text(tmp_path, shared_data, monkeypatch):
    if importlib.util.find_spec("reasoning_gym") is None:
        pytest.skip("reasoning-gym is not installed: pip install -e '.[reasoning]'")
    monkeypatch.setenv("JAXALIGN_SHARED_DATA", str(shared_data))
    config = module_at(RECIPE).get_config()
    for name in config.chain:
        stage = config.stages[name]
        with stage.unlocked():
            if "model" in stage:
                stage.model.update(MODEL)
                stage.mesh.update(data=1)
                stage.update(steps=2, batch_size=8, log_every=1)
                for source in [*stage.data.train, *stage.data.dev]:
                    source.setdefault("limit", 200)
            if name == "reasoning":
                stage.update(sft=40, train=40, dev=10)
            elif name == "tokenizer":
                stage.update(vocab_size=600, max_chars=200_000)
            elif name in ("ppo", "grpo"):
                stage.update(max_new_tokens=8)
    report = run_pipeline(config, tmp_path)
    assert [stage["name"] for stage in report["stages"]] == list(config.chain)
    for name, stages in (("grpo", ["pretrain", "sft", "ppo", "grpo"]), ("dpo", ["pretrain", "sft", "dpo"]),
                         ("reward", ["pretrain", "sft", "reward", "reward"])):
        assert [step["stage"] for step in read_meta(tmp_path / name)[1]["lineage"]] == stages
