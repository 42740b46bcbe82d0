"""A published model's folder with its tokenizer, as tests of import and export read it."""

import json

import ml_dtypes
from published_models import config_of, write_model
from published_tokenizer import write_tokenizer

GENERATION = {"eos_token_id": [1, 5], "temperature": 0.6}


def published(folder, case="llama", dtype=ml_dtypes.bfloat16, tokenizer=(), **changes):
    config = config_of(case) | changes
    write_model(folder, config, dtype)
    write_tokenizer(folder, **dict(tokenizer))
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    return folder
