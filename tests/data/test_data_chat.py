"""The chat template: what is a target and what is not, said by the rendering."""

import dataclasses

import pytest

from jaxalign.data.chat import TEMPLATE, render
from jaxalign.errors import DataError


def turn(role, content="Hello", **more):
    return {"role": role, "content": content, **more}


def spelled(tokenizer, ids, mask):
    return (tokenizer.decode(ids, specials="show"),
            tokenizer.decode([i for i, m in zip(ids, mask) if m], specials="show"))


def test_the_assistants_words_and_the_ends_of_its_turns_are_targets(tokenizer):
    ids, mask = render([turn("system", "Be kind."), turn("user", "Hi"), turn("assistant", "Yes."), turn("user", "So?"),
                        turn("assistant", "No.")], tokenizer)
    text, targets = spelled(tokenizer, ids, mask)
    assert text == ("<s><|system|>Be kind.<|end|><|user|>Hi<|end|><|assistant|>Yes.<|end|><|user|>So?<|end|>"
                    "<|assistant|>No.<|end|>")
    assert targets == "Yes.<|end|>No.<|end|>"
    assert len(ids) == len(mask) and ids.count(tokenizer.bos_id) == 1 and tokenizer.eos_id not in ids


def test_a_function_call_is_trained_and_an_observation_is_not(tokenizer):
    ids, mask = render([turn("user", "Sum?"), turn("function_call", "{add}"), turn("observation", "19"),
                        turn("tool", "20"), turn("assistant", "It is 19.")], tokenizer)
    text, targets = spelled(tokenizer, ids, mask)
    assert targets == "{add}<|end|>It is 19.<|end|>"
    assert "<|assistant|>{add}<|end|><|tool|>19<|end|><|tool|>20<|end|>" in text


def test_a_turn_can_be_left_out_of_the_loss(tokenizer):
    ids, mask = render([turn("user"), turn("assistant", "no", train=False), turn("user"), turn("assistant", "yes")],
                       tokenizer)
    assert spelled(tokenizer, ids, mask)[1] == "yes<|end|>"
    # a user's turn never becomes a target
    ids, mask = render([turn("user", train=True), turn("assistant", "yes")], tokenizer)
    assert spelled(tokenizer, ids, mask)[1] == "yes<|end|>"


def test_a_generation_prompt_is_the_prefix_of_the_whole(tokenizer):
    before = [turn("user", "What is 12 plus 7?")]
    prompt, prompt_mask = render(before, tokenizer, add_generation_prompt=True)
    whole, _ = render([*before, turn("assistant", "It is 19.")], tokenizer)
    assert whole[:len(prompt)] == prompt and not any(prompt_mask)
    assert tokenizer.piece(prompt[-1]) == "<|assistant|>"


@pytest.mark.parametrize("messages, expected", [
    ([], "non-empty list"),
    ("hello", "non-empty list"),
    (["hello"], "message 0"),
    ([turn("narrator")], "role among"),
    ([turn("user", None)], "content as text"),
    ([turn("user"), turn("assistant", " \n")], "non-empty answer"),
])
def test_bad_messages_are_refused_by_name(tokenizer, messages, expected):
    with pytest.raises(DataError, match=expected) as caught:
        render(messages, tokenizer, path="chat.jsonl", line=7)
    assert str(caught.value).startswith("chat.jsonl:7: expected")


def test_another_template_can_be_given(tokenizer):
    quiet = dataclasses.replace(TEMPLATE, roles={**TEMPLATE.roles, "narrator": ("<|system|>", False)})
    ids, mask = render([turn("narrator"), turn("user"), turn("assistant")], tokenizer, template=quiet)
    assert tokenizer.piece(ids[1]) == "<|system|>" and sum(mask) > 1
