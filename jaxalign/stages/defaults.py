"""The settings that stages share. Every key a config may set exists here, or in its stage, with its type."""

import dataclasses

from ml_collections import ConfigDict

from jaxalign.models.config import ModelConfig
from jaxalign.models.lora import LoraConfig

# What a model is, apart from the size of its vocabulary, which is the tokenizer's.
MODEL = {field.name: field.default for field in dataclasses.fields(ModelConfig) if field.name != "vocab_size"}

OPTIMIZER = dict(name="adamw", peak_lr=1e-3, schedule="cosine", warmup_steps=0, end_fraction=0.1, b1=0.9, b2=0.95,
                 eps=1e-8, weight_decay=0.0, clip_norm=1.0, muon_adam_fraction=0.3, lora_plus=1.0)


def base_config(stage, **changes) -> ConfigDict:
    """The settings of every stage; `changes` are added or override."""
    config = ConfigDict(dict(
        stage=stage,
        seed=0,
        init_from="",  # a stage's workdir or a checkpoint; "" starts from random weights
        tokenizer="",  # a SentencePiece model; "" takes the one in init_from
        allow_other_tokenizer=False,
        steps=100,
        batch_size=32,
        length=128,
        microbatches=1,
        fold=True,  # whether what has a document a row (rankings, pairs, responses) is packed for the forward pass
        fold_rows=0,  # the fewest packed rows: what most batches need is then the one shape that is compiled
        logits_chunk=0,  # positions a row whose logits exist at once; 0: as many as `stage.LOGITS` allows
        log_every=10,
        eval_every=0,  # 0: only before and after
        eval_batches=8,
        checkpoint_every=500,  # steps that a run which is stopped loses at most; 0: saved only at the end
        keep=1,
        model=MODEL,
        optimizer=OPTIMIZER,
        lora=dataclasses.asdict(LoraConfig()),  # rank 0: everything is trained
        mesh=dict(data=-1, fsdp=1, tensor=1),
        data=dict(train=[], dev=[], packing="best_fit", shuffle=True, truncate="", on_bad_row="error"),
        objective=dict(name=""),
        preview=True,
    ))
    config.update(ConfigDict(changes))
    config.lock()
    config.objective.unlock()  # another objective brings options of its own; `checks.objective_options` looks at them
    return config
