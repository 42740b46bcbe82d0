"""Makes tests/golden/peft.json afresh with PEFT: logits of small models under small adapters.

    bash tools/conformance.sh --goldens
"""

import json
import pathlib
import sys
import tempfile

import peft
import torch

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "golden")]

import peft_adapters as adapters  # noqa: E402
import published_models as published  # noqa: E402
from make_families import load  # noqa: E402


def logits(case):
    """Of `published.DOCUMENTS`, each (T, V)."""
    family, options = adapters.CASES[case]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        published.write_model(folder / "model", published.config_of(family))
        adapters.write_adapter(folder / "adapter", family, **options)
        return of_folders(folder / "model", folder / "adapter")


def of_folders(model, adapter):
    """Logits of a published folder under a PEFT folder, every tensor of which must have found its place."""
    base = load(model)
    adapted = peft.PeftModel.from_pretrained(base, adapter).eval()
    held = peft.get_peft_model_state_dict(adapted)
    from jaxalign.exchange.safetensors import Safetensors

    files = Safetensors(adapter, "adapter_model")
    assert set(held) == files.names, sorted(set(held) ^ files.names)[:4]
    assert all(torch.equal(held[name], torch.tensor(files.read(name).copy())) for name in held)
    with torch.no_grad():
        return [adapted(input_ids=torch.tensor([document])).logits[0].numpy() for document in published.DOCUMENTS]


def golden(case):
    return [adapters.packed(x) for x in logits(case)]


def main():
    cases = {case: golden(case) for case in adapters.CASES}
    adapters.GOLDEN.write_text(json.dumps({"peft": peft.__version__, "cases": cases}, indent=1) + "\n")
    size = adapters.GOLDEN.stat().st_size
    print(f"wrote {adapters.GOLDEN.relative_to(ROOT)}: {len(cases)} cases, {size} bytes")


if __name__ == "__main__":
    main()
