"""Continued pretraining: a model of books goes on to code, and some of what it has read is read again.

    jaxalign train --config=configs/adapt.py --workdir=runs/adapt

Starts from the pretrained model of configs/first_light.py. 150 steps of 4,096 tokens. It ends with what that cost and
what it brought ("old domain: … → …", "new domain: … → …"). Needs the sets that configs/first_light.py needs.
Figures, by how much is read again: experiments/forgetting/README.md. Another model: --config.init_from=runs/smollm2;
what an imported one has learned is not known, so name it: --config.data.old="[{'path': 'old.jsonl', 'shape': 'text'}]".
"""

import os
import pathlib

from jaxalign.stages import default_config

BESIDE = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
DATA = os.environ.get("JAXALIGN_SHARED_DATA") or str(BESIDE)


def get_config():
    config = default_config("pretrain")
    config.init_from = "runs/first_light/pretrain"  # its dev data are the old domain, unless config.data.old says another
    code = {"path": f"{DATA}/sft/gpteacher_codegen.json", "shape": "text", "fields": {"text": "response"}}
    config.data.train = [
        code | {"split": "train", "share": 0.75},
        {"path": f"{DATA}/pretrain/books.train.jsonl.gz", "shape": "text", "share": 0.25},
    ]
    config.data.dev = [code | {"split": "dev"}]
    config.steps = 150
    config.batch_size = 16
    config.length = 256
    # The rate had come down to nothing: warmed up again to half of what it was, and down once more (Gupta et al. 2023,
    # arXiv:2308.04014; Ibrahim et al. 2024, arXiv:2403.08763, with replay).
    config.optimizer.update(name="muon", peak_lr=4e-3, schedule="linear", warmup_steps=15, end_fraction=0.05,
                            muon_adam_fraction=2.0)
    config.model.unroll = 4
    config.eval_batches = 0
    config.log_every = 25
    config.checkpoint_every = 50
    return config
