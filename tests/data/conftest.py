"""One small tokenizer for all tests of the data, trained on their own words."""

import pytest

from jaxalign.data.tokenizer import train_tokenizer

WORDS = ["The capital of France is Paris.", "What is 12 plus 7? It is 19.", "Hello, how are you today?", "I do not know.",
         "A function call and its observation.", "Once upon a time there was a fox who lived by the river."]


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer([" ".join(WORDS[i:] + WORDS[:i]) for i in range(6)] * 4, vocab_size=400)
