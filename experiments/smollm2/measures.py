"""What a checkpoint of this experiment answers, how likely it holds dev data, and whether transformers says the same."""

import numpy as np

from jaxalign.data.chat import render
from jaxalign.data.intake import Intake, read_rows
from jaxalign.data.pipeline import batches
from jaxalign.errors import ConfigError
from jaxalign.evaluate.assistant import Assistant
from jaxalign.rewards.rules import numeric_match


def answered(checkpoint, rows, score, max_new_tokens):
    """Answers at temperature 0: [{"text", "ids", "ended", "numeric", "right"}], the last by `score(text, row)`.

    An answer that ran out of `max_new_tokens` is not right, whatever its last number.
    """
    assistant = Assistant.load(checkpoint, max_new_tokens=max_new_tokens)
    prompts = [render(row["messages"], assistant.tokenizer, add_generation_prompt=True)[0] for row in rows]
    rollouts, made = assistant.generate(prompts, temperature=0.0), []
    for n, row in enumerate(rows):
        ids, ended = rollouts.ids(n), float(rollouts.finished[n])
        text = assistant.tokenizer.decode(ids).strip()
        made.append({"text": text, "ids": ids, "ended": ended, "numeric": ended * numeric_match("", text, row["answer"])}
                    | ({"right": ended * score(text, row)} if score else {}))
    return made


def gsm8k(path, limit):
    """The first problems of a file as `answered` takes them."""
    rows = read_rows(dict(path=str(path), shape="gsm8k", limit=limit), Intake("error"))
    return [{"messages": row.messages, "answer": row.answer} for row in rows]


def losses(checkpoint, config):
    """(nats, tokens) of every row of an SFT config's dev data, as lists."""
    assistant, parts = Assistant.load(checkpoint), []
    for batch in batches(list(config.data.dev), assistant.tokenizer, kind="tokens", batch_size=config.batch_size,
                         length=config.length, shuffle=False, repeat=False, on_bad_row="skip"):
        counted = batch["mask_BT"] > 0
        parts.append((np.where(counted, -assistant.logp(batch), 0.0).sum(1), counted.sum(1)))
    return [np.concatenate(part).astype(np.float64).tolist() for part in zip(*parts)]


def in_transformers(folder, rows, max_new_tokens):
    """The ids that `transformers` answers at temperature 0, one prompt after the other, and float32 throughout."""
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise ConfigError("part x needs torch and transformers: pip install 'jaxalign[bench]', or leave it out with "
                          "--parts") from error
    tokenizer, made = AutoTokenizer.from_pretrained(folder), []
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for row in rows:
        ids = tokenizer.apply_chat_template(row["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            out = model.generate(**ids, max_new_tokens=max_new_tokens, do_sample=False)
        new = out[0, ids["input_ids"].shape[1]:].tolist()
        made.append({"ids": new, "text": tokenizer.decode(new, skip_special_tokens=True).strip()})
    return made


def same_answers(ours, theirs):
    """1 for each answer that is the same text, else 0."""
    return [float(a["text"] == b["text"]) for a, b in zip(ours, theirs, strict=True)]
