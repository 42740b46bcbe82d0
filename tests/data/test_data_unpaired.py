"""Single answers, each liked or not: their batches, and what KTO's reference point is measured on."""

import pytest

from jaxalign.data.pipeline import batches
from jaxalign.errors import ConfigError, DataError


def make(source, tokenizer, **options):
    return batches(source, tokenizer, **{"batch_size": 4, "length": 64, "shuffle": False, "repeat": False, **options})


def shown(batch, tokenizer, row, answer):
    """The text of one sequence of a batch, and of its targets that count."""
    inside = batch["segment_ids_BRT"][row, answer] > 0
    tokens, targets = (batch[f"{name}_BRT"][row, answer][inside] for name in ("tokens", "targets"))
    counted = targets[batch["mask_BRT"][row, answer][inside] > 0]
    return tuple(tokenizer.decode(ids, specials="show") for ids in ([*tokens, targets[-1]], counted))


THUMBS = {"records": [{"prompt": f"q{i // 2}", "completion": f"a{i}", "label": i % 3 == 0} for i in range(6)],
          "shape": "unpaired"}


def test_unpaired_answers_come_with_another_prompts_answer_that_never_counts(tokenizer):
    batch = next(make(THUMBS, tokenizer, kind="unpaired", batch_size=8))
    assert batch["desirable_B"].tolist() == [1, 0, 0, 1, 0, 0, 0, 0] and "ranks_BR" not in batch
    assert batch["answer_mask_BR"].tolist() == [[1, 0]] * 6 + [[0, 0]] * 2
    other = [2, 2, 4, 4, 0, 0]  # the next answer to another prompt, round the end
    for i in range(6):
        prompt = f"<s><|user|>q{i // 2}<|end|><|assistant|>"
        assert shown(batch, tokenizer, i, 0) == (f"{prompt}a{i}<|end|>", f"a{i}<|end|>")
        assert shown(batch, tokenizer, i, 1) == (f"{prompt}a{other[i]}<|end|>", f"a{other[i]}<|end|>")


def test_a_mismatched_answer_that_does_not_fit_costs_the_prompt_its_beginning(tokenizer):
    source = {"records": [{"prompt": "river " * 20 + "end", "completion": "a", "label": True},
                          {"prompt": "q", "completion": "fox " * 12, "label": False}], "shape": "unpaired"}
    batch = next(make(source, tokenizer, kind="unpaired", batch_size=2, length=60,
                      truncate="left"))
    whole, counted = shown(batch, tokenizer, 0, 1)
    assert whole.startswith("<s>") and whole.endswith("end<|end|><|assistant|>" + counted)
    assert counted.count("fox") == 12
    assert (batch["segment_ids_BRT"][0, 1] > 0).sum() == 60


def test_pairs_are_single_answers_too_but_one_prompt_alone_is_refused(tokenizer):
    source = {"records": [{"prompt": q, "answers": ["mid", "best"], "ranks": [1, 0]} for q in ("q", "r")],
              "shape": "rankings"}
    batch = next(make(source, tokenizer, kind="unpaired"))
    assert [shown(batch, tokenizer, i, 0)[1] for i in range(4)] == ["best<|end|>", "mid<|end|>"] * 2
    assert batch["desirable_B"].tolist() == [1, 0, 1, 0]
    with pytest.raises(ConfigError, match="at least two different prompts"):
        make({**source, "records": source["records"][:1]}, tokenizer, kind="unpaired")
    with pytest.raises(DataError, match="answers that were liked or not"):
        make({"records": [{"prompt": "q", "answer": "a"}], "shape": "prompt_response"}, tokenizer, kind="unpaired")
