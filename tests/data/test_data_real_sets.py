"""Every real set is read as its authors published it: rows counted, bad ones named; and the instruction sets packed."""

import collections
import time

import pytest

from jaxalign.data.chat import render
from jaxalign.data.intake import Intake, check_sources, read_rows, texts_of
from jaxalign.data.pipeline import batches
from jaxalign.data.rows import pairs_of
from jaxalign.data.tokenizer import Tokenizer, train_tokenizer

SETS = {  # path → (shape, rows, bad rows)
    "pretrain/books.train.jsonl.gz": ("text", 14, 0),
    "pretrain/books.dev.jsonl.gz": ("text", 1, 0),
    "pretrain/tinystories.train.jsonl": ("text", 2200, 0),
    "pretrain/tinystories.dev.jsonl": ("text", 117, 0),
    "pretrain/wikitext2.valid.txt": ("text", 1, 0),
    "pretrain/wiki_demo.txt": ("text", 1, 0),
    "pretrain/c4_demo.jsonl": ("text", 300, 0),
    "sft/rasbt_instruction_data.json": ("alpaca", 1100, 0),
    "sft/alpaca_en_demo.json": ("alpaca", 999, 0),
    "sft/gpteacher_codegen.json": ("alpaca", 4535, 0),
    "sft/gpteacher_roleplay.json": ("alpaca", 1923, 0),
    "sft/dolly_sample.jsonl": ("prompt_response", 151, 0),
    "sft/glaive_toolcall_en_demo.json": ("sharegpt", 300, 0),
    "sft/topical_chat.valid_freq.jsonl": ("messages", 539, 0),
    "sft/topical_chat.valid_rare.jsonl": ("messages", 539, 0),
    "preference/hh_harmless.train.jsonl.gz": ("pairs", 1796, 4),  # four rejected answers are empty
    "preference/hh_harmless.dev.jsonl.gz": ("pairs", 200, 0),
    "preference/oasst_trees.jsonl": ("oasst_trees", 146, 0),  # 70 trees, 146 prompts with ranked replies
    "preference/finegrained_qa_feedback.json": ("finegrained_qa", 400, 0),
    "preference/dpo_en_demo.json": ("pairs", 300, 0),
    "preference/kto_en_demo.json": ("messages", 300, 0),
    "preference/rasbt_preference.json": ("pairs", 1094, 6),  # six pairs are two equal answers
    "verifiable/gsm8k.train.jsonl": ("gsm8k", 7000, 0),
    "verifiable/gsm8k.dev.jsonl": ("gsm8k", 473, 0),
    "verifiable/svamp.train.json": ("svamp", 700, 0),
    "verifiable/bbh/*.json": ("prompts", 2500, 0),
    "verifiable/mbpp.train.jsonl": ("prompts", 374, 0),
    "safety/xstest_prompts.csv": ("prompts", 225, 0),
}
FIELDS = {"verifiable/mbpp.train.jsonl": {"prompt": "text", "answer": "code"}}
MIXTURE = [
    {"path": "rasbt_instruction_data.json", "shape": "alpaca"}, {"path": "alpaca_en_demo.json", "shape": "alpaca"},
    {"path": "gpteacher_*.json", "shape": "alpaca"}, {"path": "glaive_toolcall_en_demo.json", "shape": "sharegpt"},
    {"path": "dolly_sample.jsonl", "shape": "prompt_response", "strip_end": "###eos_token###"},
    {"path": "topical_chat.valid_*.jsonl", "shape": "messages"}]


@pytest.fixture(scope="module")
def tokenizer(shared_data):
    return train_tokenizer(texts_of({"path": shared_data / "sft" / "alpaca_en_demo.json", "shape": "alpaca"}),
                           vocab_size=1024)


@pytest.mark.parametrize("name", SETS)
def test_a_real_set_is_read_whole(shared_data, tokenizer, name):
    shape, rows, bad = SETS[name]
    intake = Intake("skip")
    seen = list(read_rows(check_sources({"path": shared_data / name, "shape": shape, "fields": FIELDS.get(
        name, {})})[0], intake))
    assert (len(seen), len(intake.report.bad)) == (rows, bad)
    for row in seen[:20]:
        if hasattr(row, "messages") and not hasattr(row, "answer"):
            answers = getattr(row, "answers", [[]])
            for answer in answers:
                assert sum(render([*row.messages, *answer], tokenizer, require_target=True)[1]) > 1


def test_real_rankings_hold_what_people_judged(shared_data):
    trees = list(read_rows({"path": shared_data / "preference" / "oasst_trees.jsonl", "shape": "oasst_trees"}))
    sizes = collections.Counter(len(row.answers) for row in trees)
    assert min(sizes) == 2 and max(sizes) == 9
    assert all(sorted(row.ranks) == list(range(len(row.ranks))) for row in trees)
    judged = list(read_rows({"path": shared_data / "preference" / "finegrained_qa_feedback.json",
                             "shape": "finegrained_qa"}))
    assert sum(len(pairs_of(row)) for row in judged) == 1293 + 811  # all labels that are not ties


def test_real_thumbs_are_read_as_single_answers_liked_or_not(shared_data, tokenizer):
    source = {"path": str(shared_data / "preference" / "kto_en_demo.json"), "shape": "unpaired"}
    rows = list(read_rows(source))
    assert collections.Counter(row.desirable for row in rows) == {True: 150, False: 150}
    assert sum(len(row.messages) > 1 for row in rows) == 77  # answers at the end of longer talks
    iterator = batches(source, tokenizer, kind="unpaired", batch_size=8, length=1024, truncate="left",
                       on_bad_row="skip")
    batch, too_long = next(iterator), len(iterator.report.bad)  # with so small a vocabulary
    assert len(iterator.corpus) == 300 - too_long and too_long < 60
    assert batch["tokens_BRT"].shape == (8, 2, 1024)
    assert batch["mask_BRT"].any(2).all() and not batch["answer_mask_BR"][:, 1].any()


def test_tool_calls_are_trained_and_observations_are_not(shared_data, tokenizer):
    source = {"path": shared_data / "sft" / "glaive_toolcall_en_demo.json", "shape": "sharegpt"}
    calls = 0
    for row in list(read_rows(source))[:60]:
        ids, mask = render(row.messages, tokenizer)
        trained = tokenizer.decode([i for i, m in zip(ids, mask) if m], specials="show").split("<|end|>")[:-1]
        expected = [m["content"] for m in row.messages if m["role"] in ("assistant", "function_call")]
        assert [t.strip() for t in trained] == [e.strip() for e in expected]
        calls += sum(m["role"] == "function_call" for m in row.messages)
    assert calls > 20


def test_the_pooled_instruction_mixture_fills_its_rows(shared_data):
    """≥ 98 % at 2048 tokens, nothing split: each document lies whole in one row, as its positions show."""
    tokenizer = Tokenizer.load(shared_data / "tokenizers" / "mistral_v1.model")
    sources = [{**s, "path": str(shared_data / "sft" / s["path"])} for s in MIXTURE]
    iterator = batches(sources, tokenizer, kind="tokens", batch_size=16, length=2048, repeat=False, truncate="left")
    report = iterator.report
    assert report.rows == 10086 and not report.bad and report.sequences == report.rows
    assert sum(report.truncated.values()) <= 3  # prompts longer than a row, said so
    filled = segments = rows = 0
    started = time.perf_counter()
    for batch in iterator:
        filled += int((batch["segment_ids_BT"] > 0).sum())
        segments += int(batch["segment_ids_BT"].max(axis=1).sum())
        rows += int((batch["segment_ids_BT"] > 0).any(axis=1).sum())
        starts = (batch["positions_BT"] == 0) & (batch["segment_ids_BT"] > 0)
        assert (batch["tokens_BT"][starts] == tokenizer.bos_id).all() and starts.sum() == batch["segment_ids_BT"].max(
            axis=1).sum()
    assert segments == report.rows and rows == iterator.rows_per_epoch
    assert filled / (rows * 2048) >= 0.98 and report.fill == pytest.approx(filled / (rows * 2048))
    assert (time.perf_counter() - started) / iterator.batches_per_epoch < 0.05
