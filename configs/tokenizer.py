"""A tokenizer for text of your own: SentencePiece with byte fallback and the chat tokens.

    jaxalign tokenizer --config=configs/tokenizer.py --workdir=runs/tokenizer '--config.data.train[0].path=books/*.txt'

Later stages take it as --config.tokenizer=runs/tokenizer/tokenizer.model.
"""

from jaxalign.stages import default_config


def get_config():
    config = default_config("tokenizer")
    config.vocab_size = 8192
    # Any number of sources, of any shape that a stage can train on: text, messages, alpaca, pairs …
    config.data.train = [{"path": "data/*.txt", "shape": "text"}]
    return config
