"""t19: the reward model's tokenizer is taken to be the policy's."""

import functools

import jax
import pytest
import tiny_stages

from jaxalign.data.tokenizer import Tokenizer, train_tokenizer
from jaxalign.errors import CheckpointError
from jaxalign.sharding import make_mesh
from jaxalign.stages import STAGES, train_stage
from jaxalign.train.checkpoint import read_meta, unpack_tokenizer


@functools.cache
def foreign():
    """A tokenizer of the same size whose ids mean other tokens, and a policy trained with it."""
    where = tiny_stages.folder()
    own = Tokenizer.load(tiny_stages.TOKENIZER)
    words = ["seven lazy wizards box quietly near jade green hills while the quick brown fox jumps over a dog",
             "two merry sailors carve wooden spoons under bright lanterns because their captain forbids loud singing",
             "old Martha keeps nineteen purple chickens behind a crooked fence along the frozen creek"] * 9
    other = train_tokenizer(words, where / "other.model", vocab_size=own.vocab_size)
    assert other.hash != own.hash and other.vocab_size == own.vocab_size
    config = tiny_stages.config("pretrain", tokenizer=str(where / "other.model"), steps=1)
    train_stage(config, where / "policy")
    return str(where / "other.model"), str(where / "policy")


def build(name, tmp_path, **changes):
    return STAGES[name](tiny_stages.config(name, **changes), tmp_path, make_mesh(devices=jax.devices()[:1]))


@pytest.mark.parametrize("name", ["sft", "reward", "dpo", "grpo"])
def test_t19_a_stage_does_not_start_from_a_checkpoint_of_another_tokenizer(name, tmp_path):
    tokenizer, _ = foreign()
    with pytest.raises(CheckpointError, match="is not the tokenizer that .* was trained with .*: its ids mean other"):
        build(name, tmp_path, tokenizer=tokenizer)


def test_t19_ppo_refuses_a_reward_model_with_another_tokenizer(tmp_path):
    _, policy = foreign()
    with pytest.raises(CheckpointError, match="the reward model's tokenizer .* is not the policy's"):
        build("ppo", tmp_path, init_from=policy, reward_model=tiny_stages.trained("reward"))


def test_t19_a_checkpoint_holds_its_tokenizer_and_the_next_stage_takes_it(tmp_path):
    tokenizer, policy = foreign()
    stage = build("sft", tmp_path, init_from=policy)
    assert stage.tokenizer.hash == Tokenizer.load(tokenizer).hash != Tokenizer.load(tiny_stages.TOKENIZER).hash
    meta = read_meta(policy)[1]
    assert Tokenizer(unpack_tokenizer(meta)).hash == meta["tokenizer"]["hash"] == stage.tokenizer.hash


def test_t19_the_same_tokenizer_under_another_name_is_the_same(tmp_path):
    copy = tmp_path / "copy.model"
    copy.write_bytes(tiny_stages.TOKENIZER.read_bytes())
    assert build("sft", tmp_path, tokenizer=str(copy)).tokenizer.hash == Tokenizer.load(copy).hash


def test_t19_on_purpose_it_is_allowed(tmp_path):
    tokenizer, _ = foreign()
    stage = build("sft", tmp_path, tokenizer=tokenizer, allow_other_tokenizer=True)
    assert stage.tokenizer.hash == Tokenizer.load(tokenizer).hash
