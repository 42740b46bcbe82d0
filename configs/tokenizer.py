"""A tokenizer for text of your own: SentencePiece with byte fallback and the chat tokens.

    jaxalign tokenizer --config=configs/tokenizer.py --workdir=runs/tokenizer

Some seconds for a megabyte of text. Your own: '--config.data.train[0].path=books/*.txt'. Later stages take it as
--config.tokenizer=runs/tokenizer/tokenizer.model.
"""

from jaxalign.stages import default_config


def get_config():
    config = default_config("tokenizer")
    config.vocab_size = 1024
    config.model_type = "bpe"
    # Any number of sources, of any shape that a stage can train on: text, messages, alpaca, pairs …
    config.data.train = [{"path": "runs/data/tokenizer.train.jsonl", "shape": "text"}]
    return config
