"""GGUF files: the same model as its safetensors, every kind of quantisation, and files that are damaged."""

import json
import struct
import time

import numpy as np
import pytest
from published_models import config_of, weight, write_model
from published_tokenizer import TEMPLATE, write_tokenizer

gguf = pytest.importorskip("gguf")
pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")

from jaxalign.cli import main  # noqa: E402
from jaxalign.errors import CheckpointError, ConfigError  # noqa: E402
from jaxalign.exchange.gguf import NAMES, _tokenizer, read_gguf  # noqa: E402
from jaxalign.exchange.safetensors import Safetensors  # noqa: E402
from jaxalign.train.checkpoint import read_meta  # noqa: E402

SIZES = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 64}  # fmt: skip
THEIRS = {ours: theirs for theirs, ours in NAMES.items()}
QUANTISED = gguf.GGMLQuantizationType


def their_name(name):
    stem, kind = name.rsplit(".", 1)
    parts = stem.split(".")
    if parts[:2] == ["model", "layers"]:
        return f"blk.{parts[2]}.{THEIRS['.'.join(parts[3:])]}.{kind}"
    return f"{THEIRS[stem]}.{kind}"


def write_gguf(path, folder, config, kinds=(), architecture=None, leave_out=(), rope_table=None):
    """The model that `write_model` wrote to a folder as a file; `kinds`: published name → (type, its bytes or None)."""
    files, family = Safetensors(folder), config["model_type"]
    architecture = architecture or family
    writer = gguf.GGUFWriter(path, architecture)
    numbers = {"block_count": "num_hidden_layers", "embedding_length": "hidden_size", "head_count": "num_attention_heads",
               "head_count_kv": "num_key_value_heads", "feed_forward_length": "intermediate_size",
               "key_length": "head_dim", "layer_norm_rms_eps": "rms_norm_eps", "rope_freq_base": "rope_theta",
               "context_length": "max_position_embeddings"}  # fmt: skip
    config = {"head_dim": config["hidden_size"] // config["num_attention_heads"]} | config
    for name, key in numbers.items():
        if name not in leave_out:
            getattr(writer, f"add_{name}")(config[key])
    ids = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["ab" if text == "q" else text for text in sorted(ids, key=ids.get)])
    writer.add_token_types([3, 3] + [1] * (len(ids) - 2))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(TEMPLATE)
    for name in sorted(files.names):
        x = files.read(name)
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(name.split(".")[-2])
        if heads and family == "llama":  # rows of a pair stand side by side there
            x = x.reshape(config[heads], 2, -1, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)
        kind, data = dict(kinds).get(name, (None, None))
        if kind is None:
            writer.add_tensor(their_name(name), np.ascontiguousarray(x))
        else:
            data = gguf.quants.quantize(x, kind) if data is None else data
            writer.add_tensor(their_name(name), data, raw_dtype=kind)
    if rope_table is not None:
        writer.add_tensor("rope_freqs.weight", np.asarray(rope_table, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def published(folder, case="llama", **changes):
    config = config_of(case) | changes
    write_model(folder, config)
    write_tokenizer(folder)
    return config


@pytest.mark.parametrize("case", ["llama", "llama, tied", "qwen2", "qwen3"])
def test_a_file_is_the_model_that_its_safetensors_are(case, tmp_path):
    family, _, tied = case.partition(", ")
    config = published(tmp_path / "model", family, tie_word_embeddings=bool(tied))
    path = write_gguf(tmp_path / "model.gguf", tmp_path / "model", config)
    assert main(["import", f"--from={path}", f"--to={tmp_path / 'run'}"]) == 0
    assert main(["export", f"--checkpoint={tmp_path / 'run'}", f"--to={tmp_path / 'out'}"]) == 0
    before, after = Safetensors(tmp_path / "model"), Safetensors(tmp_path / "out")
    assert before.names == after.names
    assert all(before.read(name).tobytes() == after.read(name).tobytes() for name in before.names)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {key: written[key] for key in SIZES} == {"head_dim": 4} | {key: config[key] for key in SIZES if key in config}
    assert written["rope_theta"] == config["rope_theta"] and written["rms_norm_eps"] == config["rms_norm_eps"]


def test_without_a_number_of_key_heads_there_are_as_many_as_heads(tmp_path):
    config = published(tmp_path / "model", num_key_value_heads=config_of("llama")["num_attention_heads"])
    path = write_gguf(tmp_path / "model.gguf", tmp_path / "model", config, leave_out=("head_count_kv",))
    assert main(["import", f"--from={path}", f"--to={tmp_path / 'run'}"]) == 0
    assert main(["export", f"--checkpoint={tmp_path / 'run'}", f"--to={tmp_path / 'out'}"]) == 0
    before, after = Safetensors(tmp_path / "model"), Safetensors(tmp_path / "out")
    assert all(before.read(name).tobytes() == after.read(name).tobytes() for name in before.names)


def fields_of(pre="smollm", **more):
    """The metadata of a tokenizer: letters, a pair of them, a whole text, two special tokens."""
    texts = ["<|text|>", "<|end|>", "<think>", *"abcd", "ab", "cd", "abcd"]
    return {"tokenizer.ggml.tokens": texts, "tokenizer.ggml.token_type": [3, 3, 4, *[1] * 7], "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.merges": ["a b", "c d"], "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 1,
            "tokenizer.ggml.pre": pre} | {f"tokenizer.ggml.{name}": value for name, value in more.items()}


def test_texts_that_are_never_taken_apart_stay_whole_and_are_text():
    t = _tokenizer(fields_of())
    assert t.encode("a<think>b") == [3, 2, 4] and 2 not in t.special_ids and t.decode([3, 2, 4]) == "a<think>b"
    assert t.start_ids == [] and t.encode("abcd") == [7, 8]


def test_what_llama_3_does_otherwise():
    """A word that is a piece is that piece, whatever its merges lead to, and texts begin with BOS."""
    t = _tokenizer(fields_of("llama-bpe"))
    assert t.encode("abcd") == [9] and t.start_ids == [0]
    assert _tokenizer(fields_of("llama-bpe", add_bos_token=False)).start_ids == []
    assert _tokenizer(fields_of(add_bos_token=True)).start_ids == [0]


def test_a_text_begins_with_a_space_where_the_file_says_so():
    texts = ["<unk>", "<s>", "</s>", "\u2581", "a", "b"]
    fields = {"tokenizer.ggml.tokens": texts, "tokenizer.ggml.token_type": [2, 3, 3, 1, 1, 1], "tokenizer.ggml.model": "llama",
              "tokenizer.ggml.scores": [0.0] * 6, "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2}
    assert _tokenizer(fields).encode("ab") == [3, 4, 5]
    assert _tokenizer(fields | {"tokenizer.ggml.add_space_prefix": False}).encode("ab") == [4, 5]


@pytest.mark.parametrize("kind, step", [("F16", 2**-11), ("BF16", 2**-8), ("Q8_0", 1 / 127), ("Q5_0", 1 / 15),
                                        ("Q5_1", 1 / 15), ("Q4_1", 1 / 7), ("Q4_0", 1 / 7)])
def test_what_is_quantised_is_read_as_the_nearest_numbers_there_are(kind, step, tmp_path):
    config = published(tmp_path / "model", **SIZES)
    name = "model.layers.0.mlp.up_proj.weight"
    path = write_gguf(tmp_path / "model.gguf", tmp_path / "model", config, {name: (QUANTISED[kind], None)})
    *_, tensors = read_gguf(path)
    x, expected = tensors.read(name), weight(name, (256, 256))
    largest = np.abs(expected).reshape(-1, 32).max(1, keepdims=True)  # of each block
    assert x.dtype == np.float32 and 0 < np.abs(x - expected).max()
    assert (np.abs(x - expected).reshape(-1, 32) <= 1.01 * step * largest).all()


SCALES = np.arange(1, 9.0), np.arange(5, 13.0)  # of 32 numbers each; what is taken off them
PACKED = bytes([1, 2, 3, 4, 5, 6, 7, 8, 0x95, 0xA6, 0xB7, 0xC8])  # the same in 6 bits each
HALVES = np.float16([0.5, 0.25]).tobytes()


@pytest.mark.parametrize("kind, block, row", [
    # d · (q − 32) · scale, a scale for 16 numbers; q = 0
    ("Q6_K", b"\x00" * 192 + bytes(range(1, 17)) + HALVES[:2], np.repeat(0.5 * -32.0 * np.arange(1, 17), 16)),
    # d · scale · q − dmin · min, for 32; q = 3, 5, 3, …
    ("Q4_K", HALVES + PACKED + b"\x53" * 128, np.repeat(0.5 * SCALES[0] * np.array([3, 5] * 4) - 0.25 * SCALES[1], 32)),
    # the same with a fifth bit from elsewhere, one a 32 numbers: 0b01100110
    ("Q5_K", HALVES + PACKED + b"\x66" * 32 + b"\x53" * 128,
     np.repeat(0.5 * SCALES[0] * (np.array([3, 5] * 4) + 16 * np.array([0, 1, 1, 0, 0, 1, 1, 0])) - 0.25 * SCALES[1], 32)),
    # d · scale · q − dmin · min in 4 bits each, for 16; q = 0, 1, 2, 3 for 32 numbers each
    ("Q2_K", bytes(0x20 + n for n in range(16)) + b"\xE4" * 64 + HALVES,
     0.5 * np.repeat(np.arange(16.0), 16) * np.repeat([0, 1, 2, 3] * 2, 32) - 0.25 * 2),
    # d · (scale − 32) · (q − 4 where a third bit is not set), for 16; scales are 33, q as before
    ("Q3_K", b"\x66" * 32 + b"\xE4" * 64 + b"\x11" * 8 + b"\xAA" * 4 + HALVES[:2],
     0.5 * np.repeat(np.array([0, 1, 2, 3] * 2) - 4.0 * np.array([1, 0, 0, 1, 1, 0, 0, 1]), 32)),
], ids=["Q6_K", "Q4_K", "Q5_K", "Q2_K", "Q3_K"])  # fmt: skip
def test_k_quants_are_read_as_their_definition_says(kind, block, row, tmp_path):
    """Blocks of 256 numbers made by hand."""
    config = published(tmp_path / "model", **SIZES)
    name = "model.layers.0.mlp.up_proj.weight"
    blocks = {name: (QUANTISED[kind], np.tile(np.frombuffer(block, np.uint8), (256, 1)))}
    *_, tensors = read_gguf(write_gguf(tmp_path / "model.gguf", tmp_path / "model", config, blocks))
    np.testing.assert_array_equal(tensors.read(name), np.tile(row, (256, 1)))


@pytest.mark.parametrize("kind", ["I32", "F64", "Q8_1", "Q8_K"])
def test_a_type_that_cannot_be_read_is_said_when_the_file_is_opened(kind, tmp_path):
    config = published(tmp_path / "model", **SIZES)
    block, size = gguf.GGML_QUANT_SIZES[QUANTISED[kind]]
    data = np.zeros((256, 256 // block * size), np.uint8)
    data = data.view({"I32": np.int32, "F64": np.float64}.get(kind, np.uint8))
    kinds = {"model.layers.0.mlp.up_proj.weight": (QUANTISED[kind], data)}
    path = write_gguf(tmp_path / "model.gguf", tmp_path / "model", config, kinds)
    with pytest.raises(CheckpointError, match=rf"model.gguf: blk.0.ffn_up.weight is of type {kind}; expected one of F32, "
                                              r"F16, .*Q6_K.*; quantise the model to one of these, or import"):
        read_gguf(path)


def llama3_table(factor, theta=500_000.0, size=64):
    """As llama.cpp's conversion computes it."""
    wave = 2 * np.pi * theta ** (np.arange(0, size, 2) / size)
    smooth = (8192 / wave - 1) / (4 - 1)
    table = np.where(wave < 8192 / 4, 1.0, np.where(wave > 8192, factor, 1 / ((1 - smooth) / factor + smooth)))
    assert len(set(table)) > 3
    return table


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_table_of_llama_3_is_read_as_the_scaling_that_it_comes_from(factor, tmp_path):
    config = published(tmp_path / "model", **SIZES, rope_theta=500_000.0)
    path = write_gguf(tmp_path / "model.gguf", tmp_path / "model", config, rope_table=llama3_table(factor))
    assert main(["import", f"--from={path}", f"--to={tmp_path / 'run'}"]) == 0
    assert list(read_meta(tmp_path / "run")[1]["model"]["rope_scaling"]) == ["llama3", factor, 1.0, 4.0, 8192.0]
    assert main(["export", f"--checkpoint={tmp_path / 'run'}", f"--to={tmp_path / 'out'}"]) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["rope_scaling"] == {
        "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192}


@pytest.mark.parametrize("table, message", [
    (llama3_table(16.0), "rope_freqs.weight stretches 32 waves by up to 16; expected the 32 factors of Llama 3.1"),
    (llama3_table(8.0) * np.where(np.arange(32) == 5, 1.01, 1.0), "stretches 32 waves by up to 8; expected"),
    (llama3_table(8.0, size=128), "stretches 64 waves by up to 8; expected the 32 factors"),
])
def test_another_table_is_refused(table, message, tmp_path):
    config = published(tmp_path / "model", **SIZES, rope_theta=500_000.0)
    path = write_gguf(tmp_path / "model.gguf", tmp_path / "model", config, rope_table=table)
    with pytest.raises(ConfigError, match=f"model.gguf: .*{message}"):
        read_gguf(path)


def at(place, form, value):
    """The bytes with another number at one place."""
    def break_it(data):
        return data[:place] + struct.pack(form, value) + data[place + struct.calcsize(form):]
    return break_it


NO_GGUF = "cannot be read as GGUF .*; it is damaged or no GGUF file: copy or download it again"


@pytest.mark.parametrize("break_it, message", [
    (lambda data: b"", NO_GGUF),
    (lambda data: b"GGUF", NO_GGUF),
    (lambda data: data[:40], NO_GGUF),
    (lambda data: data[:len(data) // 10], NO_GGUF),
    (lambda data: data[:-4000], NO_GGUF),
    (at(0, "<I", 0x46554748), NO_GGUF),
    (at(4, "<I", 99), NO_GGUF),
    (at(8, "<Q", 2**60), NO_GGUF),  # so many tensors
    (at(16, "<Q", 2**60), NO_GGUF),  # so many metadata
    (at(24, "<Q", 2**60), NO_GGUF),  # so long a first key
    (lambda data: data.replace(b"blk.0.attn_q", b"blk.0.attn_x"), "missing: model.layers.0.self_attn.q_proj.weight"),
    (lambda data: data.replace(b"smollm", b"smollx"), "tokenizer.ggml.pre='smollx'; expected one of gpt-2, "),
])  # fmt: skip
def test_a_damaged_file_is_said_to_be_one_soon_and_nothing_is_left(break_it, message, tmp_path, capsys):
    check(tmp_path, capsys, message, break_it)


@pytest.mark.parametrize("changes, message", [
    (dict(architecture="mamba"), "general.architecture='mamba'; expected one of llama, qwen2, qwen3"),
    (dict(leave_out=("block_count",)), "its metadata lack 'llama.block_count'"),
    (dict(intermediate_size=512), "mlp.* has shape .*, config.json makes it"),
    (dict(num_hidden_layers=2), "missing: model.layers.1"),
    (dict(num_attention_heads=0), "a value of its metadata cannot be used .*zero"),
])  # fmt: skip
def test_a_file_of_something_else_is_said_to_be_one_and_nothing_is_left(changes, message, tmp_path, capsys):
    check(tmp_path, capsys, message, lambda data: data, **changes)


def check(tmp_path, capsys, message, break_it, architecture=None, leave_out=(), **changes):
    import re

    config = published(tmp_path / "model", **SIZES)
    path = tmp_path / "model.gguf"
    write_gguf(path, tmp_path / "model", config, architecture=architecture, leave_out=leave_out)
    if changes:
        data = path.read_bytes()
        for key, value in changes.items():
            name = {"intermediate_size": "feed_forward_length", "num_hidden_layers": "block_count",
                    "num_attention_heads": "attention.head_count"}[key].encode()
            place = data.index(b"llama." + name) + len(b"llama." + name) + 4
            data = data[:place] + struct.pack("<I", value) + data[place + 4:]
        path.write_bytes(data)
    path.write_bytes(break_it(path.read_bytes()))
    started = time.monotonic()
    assert main(["import", f"--from={path}", f"--to={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and re.search(message, said, re.DOTALL), said
    assert time.monotonic() - started < 20
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "model.gguf"]
