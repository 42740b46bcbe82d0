"""t09: the loss mask is ignored once packing is on."""

import pathlib
import types

import jax
import numpy as np
import tiny_stages

from jaxalign.data.pipeline import batches
from jaxalign.data.tokenizer import Tokenizer
from jaxalign.sharding import make_mesh
from jaxalign.stages import STAGES

TOKENIZER = Tokenizer.load(pathlib.Path(__file__).parents[1] / "golden" / "chat_tokenizer.model")
SOURCE = {"records": [{"prompt": "fox " * (i % 6 + 1) + "?", "answer": "river " * (i % 4) + str(i)} for i in range(50)],
          "shape": "prompt_response"}
# Any loss that depends on the input, the target and the position within the document.
LOSS = np.random.default_rng(0).gamma(1.0, size=(128, TOKENIZER.vocab_size, TOKENIZER.vocab_size))


def total(packing, **options):
    loss, weight = 0.0, 0.0
    for batch in batches(SOURCE, TOKENIZER, kind="tokens", batch_size=8, length=128, packing=packing, repeat=False,
                         **options):
        per_token = LOSS[batch["positions_BT"], batch["tokens_BT"], batch["targets_BT"]]
        loss += (per_token * batch["mask_BT"]).sum(dtype=np.float64)
        weight += batch["mask_BT"].sum()
    return loss, weight


def test_t09_packed_loss_is_unpacked_loss():
    (packed, targets), (unpacked, same) = total("best_fit"), total("none")
    assert targets == same == sum(len(TOKENIZER.encode(r["answer"])) + 1 for r in SOURCE["records"])
    np.testing.assert_allclose(packed, unpacked, rtol=1e-12)


def test_t09_so_it_is_on_every_shard_together():
    shards = [total("best_fit", process_index=i, process_count=2) for i in (0, 1)]
    np.testing.assert_allclose(np.sum(shards, axis=0), total("none"), rtol=1e-12)


def test_t09_so_it_is_in_a_stage(tmp_path):
    """The model's own loss, of all batches, as the stage's forward pass makes it of a batch."""
    config = tiny_stages.config("pretrain", data=dict(train=[SOURCE], dev=[]), eval_batches=0)
    stage = STAGES["pretrain"](config, tmp_path, make_mesh(devices=jax.devices()[:1]))
    trainable = jax.jit(stage.init)(jax.random.key(0))
    embed = trainable["policy"]["embed"]
    embed.set_value(embed[...] * 30.0)  # as after training: fresh ones hardly attend to anything
    packed, unpacked = (stage.measure(types.SimpleNamespace(trainable=trainable), batches(
        SOURCE, TOKENIZER, kind="tokens", batch_size=8, length=128, packing=packing, repeat=False))["nll"]
        for packing in ("best_fit", "none"))
    np.testing.assert_allclose(packed, unpacked, rtol=1e-5)
