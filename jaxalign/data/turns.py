"""Picking fields out of raw records, and turns out of the several ways of writing a conversation."""

import json
import re

from jaxalign.errors import ConfigError

_ROLE_NAMES = {"human": "user", "prompter": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant",
               "function": "tool", "ipython": "tool", "tool_call": "function_call", "developer": "system"}


def pick(record, fields, name, candidates, types, required=True):
    """The value of a field: under the name `fields[name]` says, else under the first of `candidates` that is there."""
    value = record.value
    if name in fields:
        candidates = () if fields[name] is None else (fields[name],)
    for candidate in candidates:
        if value.get(candidate) is not None:
            found = value[candidate]
            if not isinstance(found, types) or isinstance(found, bool):
                wanted = " or ".join(t.__name__ for t in (types if isinstance(types, tuple) else (types,)))
                raise record.bad(f"field {candidate!r} as {wanted}", type(found).__name__)
            return found
    if required:
        raise record.bad(f"a field {' or '.join(map(repr, candidates))}", f"fields {', '.join(map(repr, value))}",
                         f"name it with fields={{{name!r}: ...}}, or choose another shape")
    return None


def read_turns(turns, record, fields):
    """A list of {"role", "content"} or {"from", "value"} → messages in our roles; `fields["roles"]` adds names."""
    roles = {**_ROLE_NAMES, **fields.get("roles", {})}
    return [_turn(turn, number, record, roles) for number, turn in enumerate(turns)]


def _turn(turn, number, record, roles):
    if not isinstance(turn, dict):
        raise record.bad(f"turn {number} as an object", type(turn).__name__)
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if not isinstance(role, str):
        raise record.bad(f"turn {number}: 'role' or 'from'", f"fields {', '.join(map(repr, turn))}")
    message = {"role": roles.get(role, role), "content": content}
    if content is None and turn.get("tool_calls"):
        message = {"role": "function_call", "content": json.dumps(turn["tool_calls"], ensure_ascii=False)}
    elif isinstance(content, list):  # parts, of which only text can be read here
        if not all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
            raise record.bad(f"turn {number}: parts of text", "a part of another kind")
        message["content"] = "".join(p["text"] for p in content)
    elif not isinstance(content, str):
        raise record.bad(f"turn {number}: 'content' or 'value' as text", type(content).__name__)
    trained = turn.get("train", turn.get("weight", True))
    return message if trained else {**message, "train": False}


def alpaca_prompt(record, fields):
    instruction = pick(record, fields, "instruction", ("instruction",), str)
    extra = pick(record, fields, "input", ("input",), str, required=False)
    return f"{instruction}\n\n{extra}" if extra and extra.strip() else instruction


def prompt_messages(record, fields):
    """What is to be answered: "messages"/"conversations", "instruction" with "input", or one "prompt"/"question"."""
    value = record.value
    turns = pick(record, fields, "messages", ("messages", "conversations"), list, required=False)
    prompt = None
    if turns is None:
        prompt = pick(record, fields, "prompt", () if "instruction" in value else ("prompt", "question", "input"),
                      (str, list), required="instruction" not in value)
        turns = prompt if isinstance(prompt, list) else None
    if turns is not None:
        return read_turns(turns, record, fields)
    prompt = alpaca_prompt(record, fields) if prompt is None else prompt
    if not prompt.strip():
        raise record.bad("a non-empty prompt", "an empty one", "drop the row, or on_bad_row='skip'")
    return [{"role": "user", "content": prompt}]


def read_transcript(text, record):
    """hh-rlhf's transcript "\\n\\nHuman: …\\n\\nAssistant: …" → messages."""
    start, *parts = re.split(r"\n\n(Human|Assistant):", text)
    if start.strip() or not parts:
        raise record.bad("a transcript that starts with '\\n\\nHuman:'", repr(text[:40]))
    return [{"role": {"Human": "user", "Assistant": "assistant"}[who], "content": said.strip()}
            for who, said in zip(parts[::2], parts[1::2])]


def strip_end(row_messages, ending):
    """Takes a literal end marker that a data set left in its answers (such as "###eos_token###") off every turn."""
    if not isinstance(ending, str) or not ending:
        raise ConfigError(f"strip_end={ending!r}; expected the text to take off")
    return [{**m, "content": m["content"].rstrip().removesuffix(ending)} for m in row_messages]
