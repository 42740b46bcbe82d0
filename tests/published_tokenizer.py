"""A tokenizer of 24 tokens for the small published models: letters, a space, two special tokens."""

import json

from jaxalign.data.vocabularies import byte_level_json

SPECIALS = ["<|text|>", "<|end|>"]
LETTERS = "abcdefghijklmnopqrstu"
TEMPLATE = ("{{ bos_token }}{% for m in messages %}{{ m['role'][0] + m['content'] + eos_token }}{% endfor %}"
            "{% if add_generation_prompt %}a{% endif %}")


def write_tokenizer(folder, *, template=TEMPLATE, more=(), **config):
    """Writes tokenizer.json and tokenizer_config.json."""
    ids = {text: i for i, text in enumerate([*SPECIALS, *LETTERS, "\u0120", *more])}
    (folder / "tokenizer.json").write_bytes(byte_level_json(ids, [], SPECIALS))
    names = {"bos_token": SPECIALS[0], "eos_token": SPECIALS[1]}
    written = names | ({"chat_template": template} if template else {}) | config
    (folder / "tokenizer_config.json").write_text(json.dumps(written))
