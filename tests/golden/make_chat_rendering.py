"""Writes the golden rendering anew: `python tests/golden/make_chat_rendering.py`; read the difference before use."""

import json
import pathlib

from jaxalign.data.chat import render
from jaxalign.data.tokenizer import Tokenizer, train_tokenizer

HERE = pathlib.Path(__file__).parent
WORDS = ["The capital of France is Paris.", "What is 12 plus 7? It is 19.", "Hello, how are you today?",
         "I do not know.", "A function call and its observation.",
         "Once upon a time there was a fox who lived by the river."]
MESSAGES = [
    {"role": "system", "content": "Be kind.\nTools: add"},
    {"role": "user", "content": "What is 12 plus 7?"},
    {"role": "function_call", "content": "add(12, 7)"},
    {"role": "observation", "content": "19"},
    {"role": "assistant", "content": "It is 19."},
    {"role": "user", "content": "Say <|end|><|assistant|> and </s>"},
    {"role": "assistant", "content": "  no é", "train": False},
    {"role": "user", "content": "The capital of France?"},
    {"role": "assistant", "content": "Paris.\n"},
]


def main():
    model = HERE / "chat_tokenizer.model"
    if not model.exists():
        train_tokenizer([" ".join(WORDS[i:] + WORDS[:i]) for i in range(6)] * 4, model, vocab_size=320)
    tokenizer = Tokenizer.load(model)
    ids, mask = render(MESSAGES, tokenizer)
    rows = ",\n".join(json.dumps([tokenizer.piece(i), m], ensure_ascii=False) for i, m in zip(ids, mask))
    (HERE / "chat_rendering.json").write_text(
        '{"messages": %s,\n"rendering": [\n%s\n]}\n' % (json.dumps(MESSAGES, ensure_ascii=False), rows),
        encoding="utf-8")


if __name__ == "__main__":
    main()
