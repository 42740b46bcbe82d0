"""What cannot be imported: an error that names it, before any long work, and nothing left."""

import json
import re

import numpy as np
import pytest
from published_folder import published
from published_models import config_of, write_model
from published_tokenizer import write_tokenizer

pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")

from jaxalign.cli import main  # noqa: E402
from jaxalign.exchange.safetensors import Safetensors, write  # noqa: E402


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def garbage(folder):
    (folder / "model.safetensors").write_bytes(b"\xff" * 5000)


def shard_lost(folder):
    write_model(folder, config_of("llama"), largest_shard=4000)
    (folder / "model.safetensors").unlink()
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


def integers(folder):
    write_model(folder, config_of("llama"), np.int32)


def another(**changes):
    def break_it(folder):
        (folder / "config.json").write_text(json.dumps(config_of("llama") | changes))
    return break_it


def another_head(change):
    """Makes of a model one that calls its output matrix the embedding and has another."""
    def break_it(folder):
        another(tie_word_embeddings=True)(folder)
        files = Safetensors(folder)
        tensors = {name: files.read(name) for name in files.names}
        tensors["lm_head.weight"] = change(tensors["model.embed_tokens.weight"])
        write(folder, {n: (x.dtype, x.shape) for n, x in tensors.items()}, tensors.get)
    return break_it


def classifier(**changes):
    def break_it(folder):
        config = config_of("llama, classifier") | changes
        write_model(folder, config_of("llama, classifier"))
        (folder / "config.json").write_text(json.dumps(config))
    return break_it


def header(change):
    """Breaks the header of a file, whose numbers stay where they are."""
    def break_it(folder):
        path = folder / "model.safetensors"
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        tensors = json.loads(data[8:8 + size])
        change(tensors)
        text = json.dumps(tensors).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size:])
    return break_it


NORM = "model.norm.weight"


def overlap(tensors):
    at = tensors["model.layers.0.input_layernorm.weight"]["data_offsets"]
    tensors["model.layers.1.input_layernorm.weight"]["data_offsets"] = at


def index_of_another(folder):
    shard_lost(folder)
    write_model(folder, config_of("llama"), largest_shard=4000)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.extra"] = index["weight_map"][NORM]
    path.write_text(json.dumps(index))


def index_in_another_shard(folder):
    shard_lost(folder)
    write_model(folder, config_of("llama"), largest_shard=4000)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"][NORM] = next(shard for shard in index["weight_map"].values() if shard != index["weight_map"][NORM])
    path.write_text(json.dumps(index))


def index_to_elsewhere(folder):
    shard_lost(folder)
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {NORM: "../../secret.safetensors"}}))


def no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


def many_tokens(folder):
    write_tokenizer(folder, more=["aa"])


def bad_template(source):
    def break_it(folder):
        write_tokenizer(folder, template=source)
    return break_it


@pytest.mark.parametrize("break_it, message", [
    (cut, "model.safetensors: it has .* bytes, its header says .*; it was cut short"),
    (garbage, "model.safetensors: its header should have"),
    (shard_lost, "the index model.safetensors.index.json names this shard, there is no such file"),
    (integers, "is of type int32; expected one of float32, float16, bfloat16"),
    (lambda folder: (folder / "model.safetensors").write_bytes(b""), "model.safetensors: 0 bytes, too few for a header"),
    (lambda folder: (folder / "model.safetensors").unlink(), "expected model.safetensors or .*, there is neither"),
    (index_of_another, "names model.norm.extra in .*, which does not hold it"),
    (index_to_elsewhere, "a shard that is no file name"),
    (header(lambda t: t[NORM].update(dtype="F32")), "model.norm.weight of type F32 and shape .16. cannot have 32 bytes"),
    (header(lambda t: t[NORM].update(dtype="F8_E4M3")), "model.norm.weight is of type F8_E4M3; expected one of F64, "),
    (header(lambda t: t[NORM].update(shape=[4, 4])), r"model.norm.weight has shape .4, 4., config.json makes it .16."),
    (header(lambda t: t[NORM].update(shape=[-16])), "model.norm.weight of type BF16 and shape .-16. cannot have"),
    (header(overlap), "input_layernorm.weight begins at byte .*, what stands before it ends at"),
    (another(num_hidden_layers=10**9), "tells of 1000000000 layers, there are 30 tensors"),
    (another(intermediate_size=24), r"mlp.* has shape \[.*\], config.json makes it \[.*\]"),
    (another(num_hidden_layers=4), "missing: model.layers.3"),
    (another(num_hidden_layers=2), "unknown: model.layers.2"),
    (another(model_type="llamo"), "model_type='llamo' is no family that jaxalign knows; it knows llama, "),
    (another(hidden_act="relu6"), "hidden_act='relu6' is not something jaxalign can run"),
    (another(rope_scaling={"rope_type": "dynamic"}), "rope_type='dynamic' is not something jaxalign can run"),
    (another(rope_scaling={"rope_type": "longrope"}), "the key 'original_max_position_embeddings' is missing"),
    (another(rope_scaling={"rope_type": "longrope", "original_max_position_embeddings": 8, "short_factor": [1.0]}),
     "model.rope_scaling=.'longrope', 8.0, .* must be .* one of linear with 1 numbers"),
    (another(quantization_config={"quant_method": "gptq"}), "weights are quantised"),
    (another(architectures=["LlamaModel"]), "expected a name that ends in ForCausalLM"),
    (another(num_hidden_layers=None), "model.num_layers=None must be a whole number, 1 or more"),
    (another(hidden_size=16.0, head_dim=4), "config.json: model.width=16.0 must be a whole number, 1 or more"),
    (another(hidden_size=-16), "must be a whole number, 1 or more"), (another(vocab_size=None), "model.vocab_size=None must be"),
    (another(rms_norm_eps="1e-5"), "model.norm_eps='1e-5' must be a finite number"),
    (another(rope_theta="abc"), "config.json: a value cannot be used .*abc"),
    (another(rope_scaling={"rope_type": "yarn", "factor": 0}), "config.json: a value cannot be used"),
    (another(architectures=[5]), "architectures=5; expected a name that ends in ForCausalLM"),
    (lambda folder: write_model(folder, config_of("llama"), np.float64), "is of type float64; expected one of float32, float16"),
    (lambda folder: (folder / "config.json").write_text("[" * 200_000), "config.json: cannot be read as JSON"),
    (index_in_another_shard, r"names .* in model-.*, which does not hold it"),
    (lambda folder: (folder / "config.json").write_text("{"), "config.json: cannot be read as JSON"),
    (lambda folder: (folder / "config.json").unlink(), "config.json: no such file"),
    (no_tokenizer, "expected a tokenizer"),
    (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer.json: cannot be read"),
    (another_head(lambda x: x + 1), "lm_head.weight should be model.embed_tokens.weight again, .* but they differ .other numbers."),
    (another_head(lambda x: x[:7, :3].astype(np.int32)), r"but they differ .int32 \[7, 3\] beside bfloat16 \[24, 16\]"),
    (another(partial_rotary_factor=0.5), "partial_rotary_factor=0.5 is not something jaxalign can run"),
    (another(model_type="mistral", architectures=["MistralForCausalLM"], sliding_window=4, layer_types=["full_attention"] * 2),
     "layer_types='2 entries' is not something jaxalign can run"),
    (classifier(pad_token_id=1), "a classifier whose pad_token_id=1 is '<.end.>', which ends a conversation"),
    (another(model_type=["llama"]), r"model_type=.'llama'. is no family"), (another(rope_theta=-5.0), "model.rope_theta=-5.0 must be above 0"),
    (classifier(id2label=5, num_labels=None), "a classifier with 2 labels"),
    (another(bos_token_id=5), r"bos_token_id=5, which is 'd' in the tokenizer; expected 0 \('<.text.>'\)"),
    (another(eos_token_id=[1, 0, 7]), r"eos_token_id=7, which is 'f' in the tokenizer; expected 1 .* copy both"),
    (many_tokens, "the tokenizer has 25 tokens, the model embeds 24"),
    (bad_template("{% for m in messages %}"), "chat template, line 1: Unexpected end of template"),
    (bad_template("{{ messages[0].content }}"), "chat template: it cannot write one question with its answer"),
])
def test_what_cannot_be_imported_is_said_and_nothing_is_left(break_it, message, tmp_path, capsys):
    model = published(tmp_path / "model")
    break_it(model)
    assert main(["import", f"--from={model}", f"--to={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and re.search(message, said), said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
