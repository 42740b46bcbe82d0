"""Batches of the five kinds: shapes, shift, order, resume, shards, mixtures, bad rows."""

import json

import grain
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxalign.data.corpus import ABSENT_RANK
from jaxalign.data.pipeline import batches
from jaxalign.errors import CheckpointError, ConfigError, DataError

TEXTS = {"records": [{"text": f"a fox {i} " + "river " * (i % 7)} for i in range(40)], "shape": "text"}
CHATS = {"records": [{"prompt": f"q{i} what", "answer": f"fox {i}" + " river" * (i % 5)} for i in range(40)],
         "shape": "prompt_response"}
RANKED = {"records": [{"prompt": f"q{i}", "answers": [f"a{k}" for k in range(2 + i % 3)],
                       "ranks": [(k + i) % 2 for k in range(2 + i % 3)]} for i in range(10)], "shape": "rankings"}


def make(sources, tokenizer, **options):
    return batches(sources, tokenizer, **{"kind": "tokens", "batch_size": 4, "length": 64, **options})


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name] == b[name] if name == "rows" else np.array_equal(a[name], b[name]), name


def documents(batch, tokenizer):
    """The texts of all segments of a batch, each put together again from its inputs and its last target."""
    found = []
    for tokens, targets, segments in zip(batch["tokens_BT"], batch["targets_BT"], batch["segment_ids_BT"]):
        for segment in range(1, segments.max() + 1):
            at = np.flatnonzero(segments == segment)
            found.append(tokenizer.decode([*tokens[at], targets[at[-1]]], specials="show"))
    return found


@pytest.mark.parametrize("packing", ["best_fit", "none"])
@pytest.mark.parametrize("source", [TEXTS, CHATS], ids=["text", "chat"])
def test_an_epoch_holds_every_row_once(tokenizer, source, packing):
    iterator = make(source, tokenizer, packing=packing, repeat=False)
    assert isinstance(iterator, grain.DatasetIterator)
    seen = list(iterator)
    assert len(seen) == iterator.batches_per_epoch
    for name, dtype in [("tokens", np.int32), ("targets", np.int32), ("mask", np.float32), ("positions", np.int32),
                        ("segment_ids", np.int32)]:
        assert {(b[f"{name}_BT"].shape, b[f"{name}_BT"].dtype.type) for b in seen} == {((4, 64), dtype)}
    found = sorted(d for b in seen for d in documents(b, tokenizer))
    if source is TEXTS:
        assert found == sorted(f"<s>{r['text']}</s>" for r in source["records"])
    else:
        assert found == sorted(f"<s><|user|>{r['prompt']}<|end|><|assistant|>{r['answer']}<|end|>"
                               for r in source["records"])
    report = iterator.report
    assert report.targets == sum(int(b["mask_BT"].sum()) for b in seen)
    assert report.tokens == sum(int((b["segment_ids_BT"] > 0).sum()) for b in seen)
    assert report.fill == pytest.approx(report.tokens / (iterator.rows_per_epoch * 64))
    with pytest.raises(StopIteration):
        next(iterator)


def test_the_last_batch_is_filled_up_with_rows_that_count_nothing(tokenizer):
    last = list(make(CHATS, tokenizer, packing="none", repeat=False, batch_size=16))[-1]
    assert last["tokens_BT"].shape == (16, 64)
    for name, array in last.items():
        assert not array[8:].any() or name in ("tokens_BT", "targets_BT")
        assert array[:8].any()
    assert np.all(last["tokens_BT"][8:] == tokenizer.pad_id)


def test_a_long_text_is_cut_into_pieces_with_every_target_kept(tokenizer):
    text = " ".join(f"river {i}" for i in range(200))
    iterator = make({"records": [{"text": text}], "shape": "text"}, tokenizer, repeat=False, shuffle=False, length=32)
    ids = [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]
    tokens, targets = [], []
    for batch in iterator:
        real = batch["segment_ids_BT"] > 0
        tokens += batch["tokens_BT"][real].tolist()
        targets += batch["targets_BT"][real].tolist()
        assert np.array_equal(batch["mask_BT"], real)
    assert tokens == ids[:-1] and targets == ids[1:]
    assert iterator.report.chunked == 1 and iterator.report.cut_tokens == 0
    assert iterator.report.text_bytes == len(text)


@pytest.mark.parametrize("options", [
    {"kind": "tokens"}, {"kind": "tokens", "packing": "none"}, {"kind": "pairs"}, {"kind": "rankings"},
    {"kind": "prompts"}], ids=lambda o: "-".join(o.values()))
def test_the_same_seed_gives_the_same_batches_and_a_state_continues_them(tokenizer, options):
    source = CHATS if options["kind"] in ("tokens", "prompts") else RANKED
    first, states, seen = make(source, tokenizer, **options), [], []
    for _ in range(25):  # several epochs
        states.append(json.loads(json.dumps(first.get_state())))
        seen.append(next(first))
    again = make(source, tokenizer, **options)
    for batch in seen:
        same(next(again), batch)
    for start in (0, 1, 7, 24):
        again.set_state(states[start])
        for batch in seen[start:]:
            same(next(again), batch)
    other = next(make(source, tokenizer, seed=1, **options))
    name = "tokens_BP" if options["kind"] == "prompts" else next(iter(other))
    assert not np.array_equal(other[name], seen[0][name])


def test_a_state_of_other_data_is_refused(tokenizer):
    state = make(CHATS, tokenizer).get_state()
    with pytest.raises(CheckpointError, match="other data"):
        make({**CHATS, "limit": 39}, tokenizer).set_state(state)


def test_an_epoch_that_ends_inside_a_batch_goes_on_with_the_next(tokenizer):
    iterator = make(CHATS, tokenizer, packing="none", batch_size=16)
    seen = [d for _ in range(5) for d in documents(next(iterator), tokenizer)]  # 80 rows: two epochs of 40
    assert sorted(seen[:40]) == sorted(seen[40:]) and len(set(seen)) == 40 and seen[:40] != seen[40:]


def test_unshuffled_rows_keep_their_order(tokenizer):
    seen = [d for b in make(CHATS, tokenizer, packing="none", shuffle=False, repeat=False)
            for d in documents(b, tokenizer)]
    assert [d.split("<|end|>")[0][len("<s><|user|>"):] for d in seen] == [r["prompt"] for r in CHATS["records"]]


@pytest.mark.parametrize("kind, source", [("tokens", CHATS), ("rankings", RANKED), ("prompts", CHATS),
                                          ("unpaired", RANKED)])
def test_the_shards_of_all_processes_are_the_global_batch(tokenizer, kind, source):
    whole = make(source, tokenizer, kind=kind, repeat=False)
    parts = [make(source, tokenizer, kind=kind, repeat=False, process_index=i, process_count=2) for i in (0, 1)]
    for batch in whole:
        left, right = (next(p) for p in parts)
        joined = {n: left[n] + right[n] if n == "rows" else np.concatenate([left[n], right[n]]) for n in batch}
        same(joined, batch)
        assert parts[0].get_state() == whole.get_state()


def test_weights_are_passes_per_epoch_and_the_other_half_comes_next(tokenizer):
    half = [{**TEXTS, "weight": 2.0}, {"records": [{"text": f"half {i}"} for i in range(20)], "shape": "text",
                                       "weight": 0.5}]
    iterator = make(half, tokenizer, packing="none", batch_size=1)
    epochs = [[documents(next(iterator), tokenizer)[0] for _ in range(90)] for _ in range(2)]
    halves = [[d for d in epoch if "half" in d] for epoch in epochs]
    assert [len(h) for h in halves] == [10, 10] and len({*halves[0], *halves[1]}) == 20
    assert all(epoch.count(f"<s>{TEXTS['records'][3]['text']}</s>") == 2 for epoch in epochs)


def test_shares_are_shares_of_the_tokens(tokenizer):
    iterator = make([{**TEXTS, "share": 3}, {"records": [{"text": f"half {i} of them"} for i in range(20)],
                                             "shape": "text", "share": 1}], tokenizer, repeat=False)
    real = half = 0
    for batch in iterator:
        for tokens, segments in zip(batch["tokens_BT"], batch["segment_ids_BT"]):
            for segment in range(1, segments.max() + 1):
                piece = tokens[segments == segment]
                real += len(piece)
                half += len(piece) * ("half" in tokenizer.decode(piece))
    assert half / real == pytest.approx(0.25, abs=0.02)


def test_rankings_hold_their_answers_side_by_side(tokenizer):
    batch = next(make(RANKED, tokenizer, kind="rankings", shuffle=False))
    assert batch["tokens_BRT"].shape == (4, 4, 64) and batch["ranks_BR"].dtype == np.int32
    assert batch["answer_mask_BR"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["ranks_BR"][:2].tolist() == [[0, 1, ABSENT_RANK, ABSENT_RANK], [1, 0, 1, ABSENT_RANK]]
    targets = batch["targets_BRT"][1, 2][batch["mask_BRT"][1, 2] > 0]
    assert tokenizer.decode(targets, specials="show") == "a2<|end|>"
    assert not batch["segment_ids_BRT"][0, 2:].any() and batch["segment_ids_BRT"].max() == 1
    fewer = make(RANKED, tokenizer, kind="rankings", shuffle=False, max_answers=2)
    batch = next(fewer)
    assert batch["ranks_BR"].tolist() == [[0, 1], [1, 0], [0, 0], [1, 0]]
    assert fewer.report.dropped_answers == sum(i % 3 for i in range(10))


def test_pairs_put_the_chosen_answer_first(tokenizer):
    source = {"records": [{"prompt": "q", "answers": ["mid", "best", "bad"], "ranks": [1, 0, 2]}], "shape": "rankings"}
    batch = next(make(source, tokenizer, kind="pairs", shuffle=False, repeat=False))
    found = [[tokenizer.decode(t[m > 0]) for t, m in zip(targets, mask)]
             for targets, mask in zip(batch["targets_BRT"], batch["mask_BRT"])]
    assert sorted(zip(found[:3], batch["margin_B"].tolist())) == [(["best", "bad"], 2), (["best", "mid"], 1),
                                                                  (["mid", "bad"], 1)]
    assert batch["answer_mask_BR"].tolist() == [[1, 1]] * 3 + [[0, 0]] and batch["margin_B"].dtype == np.float32


def test_sequences_by_number_are_those_of_the_batches(tokenizer):
    iterator = make(RANKED, tokenizer, kind="rankings")
    batch = next(iterator)
    for number, row, answer in ((batch["sequence_BR"][b, r], b, r) for b in range(4) for r in range(4)):
        if number < 0:
            assert batch["answer_mask_BR"][row, answer] == 0
            continue
        lone = iterator.corpus.lone(np.asarray([number]), 2)
        for name, array in lone.items():
            np.testing.assert_array_equal(array[0], batch[f"{name}_BRT"][row, answer])
            assert not array[1].any() or name in ("tokens", "targets")


def test_prompts_end_at_the_right_with_the_assistants_header(tokenizer):
    source = {"records": [{"question": "2+3?", "answer": "so\n#### 5", "id": 9}], "shape": "gsm8k"}
    batch = next(make(source, tokenizer, kind="prompts", length=24, batch_size=2, repeat=False))
    size = batch["length_B"][0]
    assert tokenizer.decode(batch["tokens_BP"][0][-size:], specials="show") == "<s><|user|>2+3?<|end|><|assistant|>"
    assert np.all(batch["tokens_BP"][0][:-size] == tokenizer.pad_id) and batch["length_B"].tolist() == [size, 0]
    row, padding = batch["rows"]
    assert padding is None and row["answer"] == "5" and row["prompt"] == "2+3?" and row["id"] == 9
    assert row["record"] == source["records"][0] and row["messages"][0]["role"] == "user"


def test_a_long_prompt_loses_its_beginning_and_keeps_its_header(tokenizer):
    iterator = make({"records": [{"prompt": "river " * 50}], "shape": "prompts"}, tokenizer, kind="prompts", length=16)
    tokens = next(iterator)["tokens_BP"][0]
    assert tokens[0] == tokenizer.bos_id and tokenizer.piece(tokens[-1]) == "<|assistant|>"
    assert iterator.report.truncated == {"left": 1, "right": 0} and iterator.report.cut_tokens > 0
    with pytest.raises(ConfigError, match="header"):
        make({"records": [{"prompt": "q"}], "shape": "prompts"}, tokenizer, kind="prompts", truncate="right")


def test_answers_cut_on_the_left_keep_one_prompt(tokenizer):
    source = {"records": [{"prompt": "river fox " * 30, "answers": ["a", "a fox by the river"], "ranks": [0, 1]}],
              "shape": "rankings"}
    batch = next(make(source, tokenizer, kind="rankings", length=24, truncate="left", repeat=False))
    prompts = [t[:int(np.argmax(m))] for t, m in zip(batch["tokens_BRT"][0], batch["mask_BRT"][0])]
    assert np.array_equal(*prompts) and prompts[0][0] == tokenizer.bos_id
    with pytest.raises(DataError, match="every answer to start within"):
        make(source, tokenizer, kind="rankings", length=24)


def test_bad_rows_are_skipped_listed_and_reported(tokenizer, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"prompt": "a", "answer": "b"}\n{"prompt": "a", "answer": ""}\n{broken\n'
                     b'{"prompt": "a"}\n{"prompt": "\xff", "answer": "b"}\n{"prompt": "c", "answer": "d"}\n'
                     + json.dumps({"prompt": "river " * 100, "answer": "lost"}).encode() + b"\n")
    source = {"path": str(path), "shape": "prompt_response"}
    listed = tmp_path / "out" / "bad_rows.jsonl"
    report = make(source, tokenizer, on_bad_row="skip", bad_rows_path=listed).report
    assert [b["line"] for b in report.bad] == [2, 3, 4, 5, 7] and report.rows == 2
    assert [json.loads(line) for line in listed.read_text().splitlines()] == report.bad
    assert all({"path", "line", "expected", "got", "error"} == b.keys() for b in report.bad)
    assert "5 bad rows skipped" in report.summary() and report.sources[0]["bad"] == 5
    assert report.truncated == {"left": 0, "right": 0}
    with pytest.raises(DataError, match=r"rows.jsonl:2: expected .*non-empty answer"):
        make(source, tokenizer)
    path.write_text('{"prompt": "a"}\n')
    with pytest.raises(DataError, match="at least one usable row"):
        make(source, tokenizer, on_bad_row="skip")


def test_truncation_is_refused_or_counted_on_its_side(tokenizer):
    source = {"records": [{"prompt": "q", "answer": "fox " * 40}, {"prompt": "q", "answer": "a"}],
              "shape": "prompt_response"}
    cut = len(tokenizer.encode("fox " * 40)) + len(tokenizer.encode("q")) + 5 - 33
    for side in ("right", "left"):
        report = make(source, tokenizer, length=32, truncate=side).report
        assert report.truncated == {"left": 0, "right": 0, side: 1} and report.cut_tokens == cut
    with pytest.raises(DataError, match="at most 33 tokens"):
        make(source, tokenizer, length=32, truncate="error")


def test_markers_of_other_tokenizers_are_pointed_out(tokenizer):
    source = {"records": [{"prompt": "q", "answer": "fox###eos_token###"}], "shape": "prompt_response"}
    assert "'###eos_token###' in 1 rows" in make(source, tokenizer).report.summary()
    assert not make({**source, "strip_end": "###eos_token###"}, tokenizer).report.markers


@pytest.mark.parametrize("options, expected", [
    ({"kind": "token"}, "kind='token'"), ({"packing": "first"}, "packing="), ({"truncate": "middle"}, "truncate="),
    ({"on_bad_row": "ignore"}, "on_bad_row="), ({"batch_size": 3, "process_count": 2}, "divide"),
    ({"length": 0}, "length=0")])
def test_wrong_options_are_named(tokenizer, options, expected):
    with pytest.raises(ConfigError, match=expected):
        make(CHATS, tokenizer, **options)


def test_wrong_mixtures_are_named(tokenizer):
    for sources in ([{**CHATS, "share": 1}, CHATS], [{**CHATS, "weight": -1}], [{**CHATS, "weight": 0}]):
        with pytest.raises(ConfigError, match="weight"):
            make(sources, tokenizer)


def test_a_config_dict_is_a_source(tokenizer, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"t": "a fox"}\n')
    config = ConfigDict({"path": str(tmp_path / "a.jsonl"), "shape": "text", "fields": {"text": "t"}})
    assert make(config, tokenizer).report.rows == make([config.lock()], tokenizer).report.rows == 1
