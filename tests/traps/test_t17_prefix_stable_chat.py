"""t17, the data's side: a multi-turn template renders the same prefix differently later; text yields chat-token ids."""

import io
import pathlib
import random

import pytest
import sentencepiece as spm

from jaxalign.data.chat import ROLES, Template, TemplateFault, check_prefix_stable, render
from jaxalign.data.pipeline import batches
from jaxalign.data.tokenizer import CHAT_TOKENS, Tokenizer, train_tokenizer
from jaxalign.errors import ConfigError

TOKENIZER = Tokenizer.load(pathlib.Path(__file__).parents[1] / "golden" / "chat_tokenizer.model")
PARTS = [*CHAT_TOKENS, "<s>", "</s>", "<pad>", "<unk>", "<0x0A>", " ", "  ", "\n", "fox", "Paris", "é", "😀", "\u2581",
         "<|", "|>", "<think>", "</think>", "<|im_start|>", "[INST]"]


def some_text(draw):
    return "".join(draw.choice(PARTS) for _ in range(draw.randint(1, 8)))


def some_talk(draw):
    return [{"role": draw.choice(list(ROLES)), "content": some_text(draw) + "."} for _ in range(draw.randint(1, 7))]


def trained(kind):
    return train_tokenizer(["".join(PARTS) + f" fox {i}" for i in range(50)], vocab_size=340, model_type=kind)


def published(**options):
    """A model as others publish it: trained without our chat tokens, which it gets when it is loaded."""
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(sentence_iterator=iter(["a fox by the river in Paris"] * 50), model_writer=model,
                                   vocab_size=300, byte_fallback=True, hard_vocab_limit=False, minloglevel=2,
                                   normalization_rule_name="identity", remove_extra_whitespaces=False, num_threads=1, **options)
    return Tokenizer(model.getvalue())


@pytest.mark.parametrize("make", [lambda: TOKENIZER, lambda: trained("unigram"), lambda: trained("bpe"), published,
                                  lambda: published(user_defined_symbols=["<|user|>", "<|end|>", "<pad>"])],
                         ids=["golden", "unigram", "bpe", "published", "spellable"])
def test_t17_text_never_yields_a_special_id(make):
    draw, tokenizer = random.Random(0), make()
    assert {*tokenizer.chat_ids.values(), tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id} <= tokenizer.special_ids
    for _ in range(1000):
        text = some_text(draw)
        ids = tokenizer.encode(text)
        assert not tokenizer.special_ids & set(ids)
        assert not {tokenizer.chat_ids[c] for c in CHAT_TOKENS} & set(ids)
        assert tokenizer.decode(ids) == text


def test_t17_a_prefix_is_rendered_the_same_whatever_follows():
    draw = random.Random(1)
    for _ in range(300):
        talk = some_talk(draw)
        whole, mask = render(talk, TOKENIZER)
        assert len([i for i in whole if i == TOKENIZER.end_id]) == len(talk) and whole.count(TOKENIZER.bos_id) == 1
        for turns in range(1, len(talk)):
            part, part_mask = render(talk[:turns], TOKENIZER)
            assert whole[:len(part)] == part and mask[:len(part)] == part_mask
            if talk[turns]["role"] in ("assistant", "function_call"):
                prompt, _ = render(talk[:turns], TOKENIZER, add_generation_prompt=True)
                assert whole[:len(prompt)] == prompt


def test_t17_sampled_ids_come_back_as_the_same_ids():
    """An answer's ids, decoded to text and rendered as a turn, follow the prompt as they were sampled."""
    prompt, _ = render([{"role": "user", "content": "fox?"}], TOKENIZER, add_generation_prompt=True)
    sampled = [*TOKENIZER.encode("Paris by the river. 19"), TOKENIZER.end_id]
    whole, _ = render([{"role": "user", "content": "fox?"},
                       {"role": "assistant", "content": TOKENIZER.decode(sampled)}], TOKENIZER)
    assert whole == prompt + sampled


class ForgetsThoughts(Template):
    """Qwen 3's and DeepSeek's way: thoughts are dropped from a turn by the time its text is in the past."""

    def turn(self, message, tokenizer):
        if message["role"] == "user":
            return super().turn(message, tokenizer)
        ids, mask = super().turn({**message, "content": message["content"].split("</think>")[-1]}, tokenizer)
        return ids, mask

    def header(self, tokenizer):
        return super().header(tokenizer) + tokenizer.encode("<think>")


def test_t17_a_template_that_is_not_prefix_stable_is_refused_for_reinforcement_learning():
    check_prefix_stable(TOKENIZER)
    with pytest.raises(ConfigError, match="prefix-stable"):
        check_prefix_stable(TOKENIZER, ForgetsThoughts())
    source = {"records": [{"prompt": "fox?"}], "shape": "prompts"}
    with pytest.raises(ConfigError, match="prefix-stable"):
        batches(source, TOKENIZER, kind="prompts", batch_size=1, length=32, template=ForgetsThoughts())
    assert next(batches(source, TOKENIZER, kind="prompts", batch_size=1, length=32))["length_B"][0] > 0


class TellsLast(Template):
    """Mistral v0.3's way: what the system says is written into the last question."""

    def render(self, messages, tokenizer, add_generation_prompt=False):
        if messages[0]["role"] == "system":
            told, *messages = messages
            if messages and messages[-1]["role"] == "user":
                messages[-1] = {**messages[-1], "content": told["content"] + "\n\n" + messages[-1]["content"]}
        return super().render(messages, tokenizer, add_generation_prompt)


class KnowsNoSystem(TellsLast):
    def render(self, messages, tokenizer, add_generation_prompt=False):
        if messages[0]["role"] == "system":
            raise TemplateFault("no system turn")
        return super().render(messages, tokenizer, add_generation_prompt)


def test_t17_a_template_that_moves_the_system_turn_is_refused_for_reinforcement_learning():
    with pytest.raises(ConfigError, match=r"first 2 turns, up to the user's 'What is 1 \+ 1\?', .*Be brief.*prefix-stable"):
        check_prefix_stable(TOKENIZER, TellsLast())
    check_prefix_stable(TOKENIZER, KnowsNoSystem())
