"""GGUF files: the same model as its safetensors, every kind of quantisation, and files that are damaged."""

import json
import re
import struct
import time

import numpy as np
import pytest
from published_models import config_of, weight, write_model
from published_tokenizer import write_tokenizer

gguf = pytest.importorskip("gguf")
pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")

from gguf_files import metadata_of_pieces, write_gguf  # noqa: E402
from tiny_stages import TEXTS  # noqa: E402

from jaxalign.cli import main  # noqa: E402
from jaxalign.data.published import PublishedTokenizer, pack_files  # noqa: E402
from jaxalign.data.tokenizer import train_tokenizer  # noqa: E402
from jaxalign.data.vocabularies import CUTS  # noqa: E402
from jaxalign.errors import CheckpointError, ConfigError  # noqa: E402
from jaxalign.exchange.gguf import read_gguf  # noqa: E402
from jaxalign.exchange.gguf_metadata import Fields, generation, tokenizer  # noqa: E402
from jaxalign.exchange.safetensors import Safetensors  # noqa: E402
from jaxalign.train.checkpoint import read_meta  # noqa: E402

SIZES = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 64}  # fmt: skip
QUANTISED = gguf.GGMLQuantizationType


def published(folder, case="llama", **changes):
    config = config_of(case) | changes
    write_model(folder, config)
    write_tokenizer(folder)
    return config


def test_without_a_number_of_key_heads_there_are_as_many_as_heads(tmp_path):
    config = published(tmp_path / "model", num_key_value_heads=config_of("llama")["num_attention_heads"])
    path = write_gguf(tmp_path / "model.gguf", tmp_path / "model", config, leave_out=("head_count_kv",))
    assert main(["import", f"--from={path}", f"--to={tmp_path / 'run'}"]) == 0
    assert main(["export", f"--checkpoint={tmp_path / 'run'}", f"--to={tmp_path / 'out'}"]) == 0
    before, after = Safetensors(tmp_path / "model"), Safetensors(tmp_path / "out")
    assert all(before.read(name).tobytes() == after.read(name).tobytes() for name in before.names)


def tokenizer_of(fields):
    return tokenizer(Fields(fields, "llama", {}, None))


def fields_of(pre="smollm", **more):
    """The metadata of a tokenizer: letters, a pair of them, a whole text, two special tokens."""
    texts = ["<|text|>", "<|end|>", "<think>", *"abcd", "ab", "cd", "abcd"]
    return {"tokenizer.ggml.tokens": texts, "tokenizer.ggml.token_type": [3, 3, 4, *[1] * 7], "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.merges": ["a b", "c d"], "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 1,
            "tokenizer.ggml.pre": pre} | {f"tokenizer.ggml.{name}": value for name, value in more.items()}


def test_texts_that_are_never_taken_apart_stay_whole_and_are_text():
    t = tokenizer_of(fields_of())
    assert t.encode("a<think>b") == [3, 2, 4] and 2 not in t.special_ids and t.decode([3, 2, 4]) == "a<think>b"
    assert t.start_ids == [] and t.encode("abcd") == [7, 8]


def test_what_llama_3_does_otherwise():
    """A word that is a piece is that piece, whatever its merges lead to, and texts begin with BOS."""
    t = tokenizer_of(fields_of("llama-bpe"))
    assert t.encode("abcd") == [9] and t.start_ids == [0]
    assert tokenizer_of(fields_of("llama-bpe", add_bos_token=False)).start_ids == []
    assert tokenizer_of(fields_of(add_bos_token=True)).start_ids == [0]


PIECES = ["<unk>", "<s>", "</s>", "\u2581", "a", "b", "  ", "ab", "<|user|>", "<|endoftext|>", *(f"<0x{b:02X}>" for b in range(256))]
SPM = {"tokenizer.ggml.tokens": PIECES, "tokenizer.ggml.token_type": [3, 3, 3, 1, 1, 1, 4, 1, 3, 3, *[6] * 256], "tokenizer.ggml.model": "llama",
       "tokenizer.ggml.scores": [float(-n) for n in range(266)], "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
       "tokenizer.ggml.unknown_token_id": 0, "tokenizer.ggml.add_space_prefix": False}


def test_a_file_that_calls_the_unknown_token_special_is_read():
    """As conversions have since 2024: of all special tokens, the unknown too."""
    t = tokenizer_of(SPM)
    assert t.encode("ab") == [7] and t.encode("\n") == [10 + 10]
    assert {t.special_texts[text] for text in ("<s>", "</s>", "<|user|>")} == {1, 2, 8}


def test_spaces_that_are_one_piece_are_found():
    assert tokenizer_of(SPM).encode("a  b") == [4, 6, 5]  # Gemma's runs of spaces


def test_where_all_scores_are_equal_the_first_piece_is_merged_first():
    pieces = ["<unk>", "<s>", "</s>", "a", "b", "c", "bc", "ab"]
    fields = SPM | {"tokenizer.ggml.tokens": pieces, "tokenizer.ggml.token_type": [2, 3, 3, 1, 1, 1, 1, 1],
                    "tokenizer.ggml.scores": [-1000.0] * 8}
    assert tokenizer_of(fields).encode("abc") == [3, 6]


def test_special_tokens_of_phi_3_take_white_space_along():
    def rendered(architecture, kind):
        fields = SPM | {"tokenizer.ggml.add_space_prefix": True, "tokenizer.ggml.tokens": [*PIECES[:6], "c", *PIECES[7:]],
                        "tokenizer.ggml.token_type": [3, 3, kind, 1, 1, 1, 1, 1, 3, 3, *[6] * 256]}
        t = tokenizer(Fields(fields, architecture, {}, None))
        text, special = "<|user|>\n ab</s>\n", re.compile(r"<\|user\|>|</s>")
        return [(i, text[start:end]) for i, start, end in t.encode_rendered(text, (), special, "\ufdd0")], set(t.files)

    for kind in (3, 4):  # its conversions call the second so too
        tokens, files = rendered("phi3", kind)
        assert [i for i, _ in tokens] == [8, 3, 7, 2] and tokens[0][1] == "<|user|>\n " and tokens[-1][1] == "</s>\n"
        assert files == {"tokenizer.model", "tokenizer.json", "tokenizer_config.json"}
    assert [i for i, _ in rendered("llama", 3)[0]] == [8, 3, 20, 3, 7, 2, 3, 20]


@pytest.mark.parametrize("prefix", [True, False])
def test_pieces_with_scores_give_the_same_ids_through_either_library(prefix):
    """The package tokenizers and SentencePiece, of a vocabulary trained here and written as llama.cpp's conversion does; where no
    space stands before a text, as in Gemma's, with runs of spaces that users defined."""
    model = train_tokenizer(TEXTS, vocab_size=400, model_type="bpe").model_bytes
    fields = metadata_of_pieces(model, prefix=prefix, runs=not prefix)
    both = tokenizer_of(fields)
    alone = PublishedTokenizer(pack_files({name: data for name, data in both.files.items() if name != "tokenizer.json"}))
    assert "tokenizer.json" in both.files and both.start_ids == alone.start_ids == [both.bos_id]
    draw = np.random.default_rng(0)
    for text in ["", " ", *("".join(draw.choice([*TEXTS[0].split(), " ", "  ", "\n", "\u00e9", "12"], 9)) for _ in range(200))]:
        assert both.encode(text) == alone.encode(text), text
        assert both.decode(both.encode(text)) == alone.decode(both.encode(text)).replace("\u2581", " ") == text


@pytest.mark.parametrize("name", ["<|im_end|>", "<end_of_turn>", "<|eot_id|>", "<|end|>"])
def test_what_ends_a_turn_is_special_whatever_the_file_calls_it(name):
    fields = fields_of()
    fields["tokenizer.ggml.tokens"] = [*fields["tokenizer.ggml.tokens"], name]
    fields["tokenizer.ggml.token_type"] = [*fields["tokenizer.ggml.token_type"], 1]
    assert tokenizer_of(fields).special_texts[name] == 10
    assert tokenizer_of(fields_of(eot_token_id=2)).special_texts["<think>"] == 2


def test_where_a_file_does_not_say_how_texts_are_cut_the_architecture_does():
    fields = fields_of()
    del fields["tokenizer.ggml.pre"]
    for architecture, name in (("gpt2", "gpt-2"), ("gptneox", "gpt-2"), ("qwen2", "qwen2"), ("qwen3moe", "qwen2")):
        cut = json.loads(tokenizer(Fields(fields, architecture, {}, None)).files["tokenizer.json"])["pre_tokenizer"]
        assert cut == {"type": "Sequence", "pretokenizers": CUTS[name]}
    with pytest.raises(ConfigError, match="tokenizer.ggml.pre=None, how texts are cut; .* of before May 2024"):
        tokenizer_of(fields)


@pytest.mark.parametrize("key, value", [("unknown", -1), ("eot", 2**32 - 1), ("eot", "1"), ("padding", [1]), ("bos", float("nan"))])
def test_a_token_that_there_is_not_is_none(key, value):
    of = Fields(fields_of(**{f"{key}_token_id": value}), "llama", {}, None)
    t = tokenizer(of)
    assert t.vocab_size == 10 and generation(of, t) == {"eos_token_id": 1}


WORDS = "HelloWorld it's 12345 a//b"


@pytest.mark.parametrize("pre, parts", [
    ("gpt-2", ["HelloWorld", " it", "'s", " 12345", " a", "//", "b"]), ("olmo", ["HelloWorld", " it", "'s", " 12345", " a", "//", "b"]),
    ("smollm", ["HelloWorld", " it", "'s", " ", *"12345", " a", "//", "b"]),
    ("llama-bpe", ["HelloWorld", " it", "'s", " ", "123", "45", " a", "//", "b"]),
    ("smaug-bpe", ["HelloWorld", " it", "'s", " ", "123", "45", " a", "//", "b"]),
    ("dbrx", ["HelloWorld", " it", "'s", " ", "123", "45", " a", "//", "b"]),
    ("qwen2", ["HelloWorld", " it", "'s", " ", *"12345", " a", "//", "b"]),
    ("deepseek-r1-qwen", ["HelloWorld", " it", "'s", " ", *"12345", " a", "//", "b"]),
    ("gpt-4o", ["Hello", "World", " it's", " ", "123", "45", " a", "//", "b"]),
    ("tekken", ["Hello", "World", " it", "'s", " ", *"12345", " a", "//", "b"]),
])
def test_texts_are_cut_as_the_file_says(pre, parts):
    """Cuts of a text with capitals, a short form, a number and signs, by hand from the published patterns."""
    import tokenizers

    files = tokenizer_of(fields_of(pre)).files
    cut = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode()).pre_tokenizer.pre_tokenize_str(WORDS)
    assert [WORDS[start:end] for _, (start, end) in cut] == parts


def test_a_text_begins_with_a_space_where_the_file_says_so():
    texts = ["<unk>", "<s>", "</s>", "\u2581", "a", "b"]
    fields = {"tokenizer.ggml.tokens": texts, "tokenizer.ggml.token_type": [2, 3, 3, 1, 1, 1], "tokenizer.ggml.model": "llama",
              "tokenizer.ggml.scores": [0.0] * 6, "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2}
    assert tokenizer_of(fields).encode("ab") == [3, 4, 5]
    assert tokenizer_of(fields | {"tokenizer.ggml.add_space_prefix": False}).encode("ab") == [4, 5]


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
    (lambda data: data.replace(b"smollm", b"smollx"), "tokenizer.ggml.pre='smollx', how texts are cut; expected one of gpt-2, "),
])  # fmt: skip
def test_a_damaged_file_is_said_to_be_one_soon_and_nothing_is_left(break_it, message, tmp_path, capsys):
    check(tmp_path, capsys, message, break_it)


@pytest.mark.parametrize("changes, message", [
    (dict(architecture="mamba"), "general.architecture='mamba'; expected one of llama, smollm3, qwen2, .*gptneox"),
    (dict(leave_out=("block_count",)), "its metadata lack 'llama.block_count'"),
    (dict(intermediate_size=512), "mlp.* has shape .*, config.json makes it"),
    (dict(num_hidden_layers=2), "missing: model.layers.1"),
    (dict(num_attention_heads=0), "llama.attention.head_count=0 must be a whole number from 1 to"),
    (dict(num_hidden_layers=2**32 - 1), "llama.block_count=4294967295 must be a whole number from 1 to 12"),
])  # fmt: skip
def test_a_file_of_something_else_is_said_to_be_one_and_nothing_is_left(changes, message, tmp_path, capsys):
    check(tmp_path, capsys, message, lambda data: data, **changes)


def test_a_number_of_things_that_the_file_has_no_bytes_for_makes_no_room_for_them(tmp_path, capsys):
    """Of an array's values, so that the rest of the file is a whole number of them: the package would read on past its end."""
    def break_it(data):
        place = data.index(b"tokenizer.ggml.token_type") + len("tokenizer.ggml.token_type") + 8
        data = at(place, "<Q", 2**40)(data)
        return data + b"\0" * (-(len(data) - place) % 4)

    check(tmp_path, capsys, f"{NO_GGUF}", break_it)


def check(tmp_path, capsys, message, break_it, architecture=None, leave_out=(), **changes):
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
