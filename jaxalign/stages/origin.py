"""What a stage takes over from where it starts: the tokenizer and the shape of the model."""

from jaxalign.data.tokenizer import load_tokenizer, open_tokenizer
from jaxalign.errors import CheckpointError
from jaxalign.models.transformer import ModelConfig
from jaxalign.stages.defaults import MODEL
from jaxalign.train.checkpoint import unpack_tokenizer

RUNTIME = ("dtype", "remat", "unroll")  # choices of how a model runs, not of what it is


def tokenizer_of(config, parent):
    """The tokenizer that the config names, or else the parent's.

    Args:
      config: a stage's.
      parent: `read_meta` of `config.init_from`, None where that is empty.
    Raises:
      CheckpointError: the two differ, and the config does not say that they may.
    """
    given = load_tokenizer(config.tokenizer) if config.tokenizer else None
    inherited = open_tokenizer(unpack_tokenizer(parent[1])) if parent else None
    if given and inherited and given.hash != inherited.hash and not config.allow_other_tokenizer:
        raise CheckpointError(
            f"config.tokenizer={config.tokenizer} (sha256 {given.hash[:12]}) is not the tokenizer that "
            f"{config.init_from} was trained with ({inherited.hash[:12]}): its ids mean other tokens; leave "
            "config.tokenizer empty to take over the checkpoint's, or set allow_other_tokenizer=True")
    return given or inherited


def model_of(config, parent, tokenizer, warn):
    """The `ModelConfig` of the parent, run as the config says, or else the config's.

    Args:
      config, parent: as of `tokenizer_of`.
      tokenizer: the stage's.
      warn: takes a line about a setting that the parent overrules.
    Raises:
      CheckpointError: the parent embeds fewer pieces than the tokenizer has.
      ConfigError: rows longer than the places that the model has learned.
    """
    if parent:
        found = parent[1]["model"]
        if tokenizer.least_rows > found["vocab_size"]:
            raise CheckpointError(f"config.tokenizer={config.tokenizer} has {tokenizer.vocab_size} pieces, the model of "
                                  f"{config.init_from} embeds {found['vocab_size']}; use a tokenizer that is no larger")
        for name, value in config.model.items():
            if name not in RUNTIME and value not in (found.get(name, value), MODEL[name]):
                warn(f"{config.stage}: config.model.{name}={value!r} is not used; the model of {config.init_from} has "
                     f"{found[name]!r}")
        model = ModelConfig(**(found | {name: config.model[name] for name in RUNTIME}))
    else:
        model = ModelConfig(vocab_size=tokenizer.vocab_size, **config.model)
    drawn = config.get("max_new_tokens", 0)
    # A score is read after a row's last token too; PPO's reward model reads what its template writes behind a response.
    more = 1 if config.stage == "reward" else len(tokenizer.tail_ids) if config.get("reward_model") else 0
    model.need_places(config.length + drawn + more, f"{config.stage}: config.length={config.length}" + (
        f" with config.max_new_tokens={drawn}" if drawn else ""), "make it smaller")
    return model
