"""Domain SFT: an assistant learns to answer in one domain (code), and goes on answering what it was asked before.

    jaxalign train --config=configs/domain_sft.py --workdir=runs/domain_sft

Starts from the SFT model of configs/first_light.py. 100 steps of 16 rows. It ends with what that cost, on the dev data of
that model, and what it brought ("old domain: … → …", "new domain: … → …"). Needs the sets that configs/first_light.py
needs. experiments/forgetting measures it by how much is replayed (`--tasks=code_sft`).
"""

import os
import pathlib

from jaxalign.stages import default_config

BESIDE = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
DATA = os.environ.get("JAXALIGN_SHARED_DATA") or str(BESIDE)


def get_config():
    config = default_config("sft")
    config.init_from = "runs/first_light/sft"  # its dev data are the old domain, unless config.data.old says another
    code = {"path": f"{DATA}/sft/gpteacher_codegen.json", "shape": "alpaca"}
    replay = {"alpaca_en_demo.json": ("alpaca", 0.1), "gpteacher_roleplay.json": ("alpaca", 0.1),
              "topical_chat.valid_freq.jsonl": ("messages", 0.05)}
    config.data.train = [code | {"split": "train", "share": 0.75}] + [
        {"path": f"{DATA}/sft/{name}", "shape": shape, "split": "train", "share": share}
        for name, (shape, share) in replay.items()]
    config.data.dev = [code | {"split": "dev"}]
    config.data.on_bad_row = "skip"
    config.steps = 100
    config.batch_size = 16
    config.length = 384
    # As in configs/adapt.py: warmed up again to half of what it was, and down.
    config.optimizer.update(name="muon", peak_lr=1.5e-3, schedule="linear", warmup_steps=10, end_fraction=0.05,
                            muon_adam_fraction=2.0)
    config.model.unroll = 4
    config.eval_batches = 0
    config.log_every = 25
    config.checkpoint_every = 50
    return config
