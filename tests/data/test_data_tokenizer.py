"""Tokenizers: lossless, deterministic, and deaf to chat tokens spelled out in text."""

import pickle
import random

import pytest

from jaxalign.data.tokenizer import CHAT_TOKENS, Tokenizer, train_tokenizer
from jaxalign.errors import ConfigError, DataError

STORY = ["The fox ran to the river 12 times.\n\nIt drank, and it slept.", "Once there was a small red house on a hill."]
TEXTS = [f"{a} {b} {i}" for i in range(40) for a, b in [STORY, STORY[::-1]]]


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def tokenizer(request):
    return train_tokenizer(TEXTS, vocab_size=320, model_type=request.param)


HARD = ["", " ", "   ", " a", "a ", "  a  b", "\n", "\n\n x\n", "\t", "a\r\nb", "\u2581", "a\u2581\u2581 b\u2581",
        "Ü 😀\x00", "\u00a0x\u3000y\u2028z", "ﬁ é e\u0301", "\ufdd0\u2581\ufdd0", "<s></s><unk><pad><0x41>",
        "".join(CHAT_TOKENS)]


@pytest.mark.parametrize("text", HARD)
def test_hard_texts_come_back_unchanged(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_random_texts_come_back_unchanged_without_special_or_unknown_ids(tokenizer):
    draw = random.Random(0)
    alphabet = "ab fox\n\t é😀\u258109.<|>s/end"
    for _ in range(3000):
        text = "".join(draw.choice(alphabet) for _ in range(draw.randint(0, 14)))
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not tokenizer.special_ids & set(ids) and tokenizer.unk_id not in ids


def test_digits_stand_alone(tokenizer):
    pieces = [tokenizer.piece(i) for i in tokenizer.encode("12 times 345")]
    assert all(len(p) == 1 or p.startswith("<0x") for p in pieces if any(c.isdigit() for c in p))


def test_training_is_deterministic_and_the_file_is_the_tokenizer(tokenizer, tmp_path):
    kind = "unigram" if tokenizer == train_tokenizer(TEXTS, vocab_size=320) else "bpe"
    again = train_tokenizer(iter(TEXTS), tmp_path / "deep" / "t.model", vocab_size=320, model_type=kind)
    assert again.hash == tokenizer.hash
    assert Tokenizer.load(tmp_path / "deep" / "t.model").hash == tokenizer.hash
    assert pickle.loads(pickle.dumps(tokenizer)) == tokenizer
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2, 3)
    assert len({*tokenizer.chat_ids.values()}) == len(CHAT_TOKENS) and tokenizer.end_id == tokenizer.chat_ids["<|end|>"]


def test_decode_drops_or_shows_special_tokens(tokenizer):
    ids = [tokenizer.bos_id, tokenizer.chat_ids["<|user|>"], *tokenizer.encode(" hi"), tokenizer.end_id]
    assert tokenizer.decode(ids) == " hi"
    assert tokenizer.decode(ids, specials="show") == "<s><|user|> hi<|end|>"


def test_long_lines_are_learned_from_and_not_dropped():
    long = train_tokenizer(["zyzzyva quux " * 3000], vocab_size=300)
    assert any("zz" in long.piece(i) for i in range(long.vocab_size))


def test_the_folder_of_a_tokenizers_run_will_do(tmp_path):
    made = train_tokenizer(TEXTS, tmp_path / "tokenizer.model", vocab_size=320)
    assert Tokenizer.load(tmp_path).hash == made.hash
    with pytest.raises(DataError, match="no such file"):
        Tokenizer.load(tmp_path.parent)


@pytest.mark.parametrize("call, error", [
    (lambda: train_tokenizer(TEXTS, vocab_size=100), ConfigError),
    (lambda: train_tokenizer(TEXTS, model_type="word"), ConfigError),
    (lambda: train_tokenizer([" ", ""]), DataError),
    (lambda: Tokenizer.load("nowhere.model"), DataError),
    (lambda: Tokenizer.load(__file__), DataError),
])
def test_wrong_requests_say_what_is_wrong(call, error):
    with pytest.raises(error):
        call()


def test_a_published_model_gets_the_chat_tokens_it_lacks(shared_data):
    mistral = Tokenizer.load(shared_data / "tokenizers" / "mistral_v1.model")
    assert mistral.vocab_size == 32000 + 6 and mistral.bos_id == 1 and mistral.pad_id == 32000
    assert mistral.decode(mistral.encode(" Two\n\u2581words <|end|>")) == " Two\n\u2581words <|end|>"
    assert not mistral.special_ids & set(mistral.encode("".join(CHAT_TOKENS) + "<s>"))


def test_real_text_comes_back_unchanged(shared_data):
    text = (shared_data / "pretrain" / "wikitext2.valid.txt").read_text(encoding="utf-8")[:200_000]
    tokenizer = train_tokenizer([text], vocab_size=1024)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode(text)) < 0.5 * len(text)
