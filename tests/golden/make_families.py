"""Makes tests/golden/families.json afresh with transformers: logits and gradients of small models of every family.

    bash tools/conformance.sh --goldens
"""

import base64
import json
import pathlib
import sys
import tempfile

import numpy as np
import torch
import transformers

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import published_models as published  # noqa: E402

GOLDEN = ROOT / "tests" / "golden" / "families.json"


def load(folder):
    """The model in a folder, in transformers, float32, and nothing left out or made up."""
    config = transformers.AutoConfig.from_pretrained(folder)
    cls = getattr(transformers, config.architectures[0])
    model, info = cls.from_pretrained(folder, dtype=torch.float32, output_loading_info=True,
                                      attn_implementation="eager")
    left = {key: value for key, value in info.items() if value and key in ("missing_keys", "unexpected_keys",
                                                                           "mismatched_keys")}
    assert not left, f"{folder}: {left}"
    return model.eval()


def logits_of(model, document):
    """(T, V) of a document alone, or its score."""
    return model(input_ids=torch.tensor([document])).logits[0]


def slope(shape):
    return np.cos(np.arange(np.prod(shape), dtype=np.float64)).astype(np.float32).reshape(shape)


def packed(array):
    return base64.b64encode(np.asarray(array, np.float32).tobytes()).decode()


def unpacked(text):
    return np.frombuffer(base64.b64decode(text), np.float32)


def golden(case):
    config = published.config_of(case)
    with tempfile.TemporaryDirectory() as folder:
        published.write_model(pathlib.Path(folder) / "model", config)
        model = load(pathlib.Path(folder) / "model")
        logits = [logits_of(model, document) for document in published.DOCUMENTS]
        sum((x * torch.tensor(slope(x.shape))).sum() for x in logits).backward()
        # The embedding's gradient stands for all: it is reached through every layer.
        embedding = model.get_input_embeddings().weight.grad
    return {"logits": [packed(x.detach()) for x in logits], "embedding_gradient": packed(embedding)}


def main():
    cases = {case: golden(case) for case in published.CASES}
    GOLDEN.write_text(json.dumps({"transformers": transformers.__version__, "cases": cases}, indent=1) + "\n")
    print(f"wrote {GOLDEN.relative_to(ROOT)}: {len(cases)} cases, {GOLDEN.stat().st_size} bytes")


if __name__ == "__main__":
    main()
