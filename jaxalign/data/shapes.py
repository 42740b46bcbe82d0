"""Raw record → rows, one reader a published data shape; field names can be overridden by `fields`."""

import json

from jaxalign.data import preferences
from jaxalign.data.rows import Chat, Prompt, Text
from jaxalign.data.turns import alpaca_prompt, pick, prompt_messages, read_turns


def text(record, fields):
    """{"text"}: a document to continue."""
    document = pick(record, fields, "text", ("text", "content"), str)
    if not document.strip():
        raise record.bad("a non-empty text", "an empty one", "drop the row, or on_bad_row='skip'")
    return [Text(record.path, record.line, document)]


def messages(record, fields):
    """{"messages": [{"role", "content"}]}; a turn with "train": false (or "weight": 0) is no target."""
    turns = pick(record, fields, "messages", ("messages", "conversations", "conversation"), list)
    return [Chat(record.path, record.line, _with_tools(read_turns(turns, record, fields), record, fields),
                 record.value)]


def sharegpt(record, fields):
    """{"conversations": [{"from", "value"}], "system", "tools"}: a function_call is trained, an observation masked."""
    turns = read_turns(pick(record, fields, "conversations", ("conversations", "conversation", "messages"), list),
                       record, fields)
    system = pick(record, fields, "system", ("system",), str, required=False)
    if system and system.strip():
        turns = [{"role": "system", "content": system}, *turns]
    return [Chat(record.path, record.line, _with_tools(turns, record, fields), record.value)]


def alpaca(record, fields):
    """{"instruction", "input", "output" or "response"}: the input follows the instruction after a blank line."""
    answer = pick(record, fields, "output", ("output", "response"), str)
    return [_exchange(record, fields, alpaca_prompt(record, fields), answer)]


def prompt_response(record, fields):
    """{"prompt", "response"} or {"question", "answer"}: one exchange."""
    prompt = pick(record, fields, "prompt", ("prompt", "question", "instruction", "input"), str)
    answer = pick(record, fields, "response", ("response", "answer", "completion", "output"), str)
    return [_exchange(record, fields, prompt, answer)]


def prompts(record, fields):
    """{"prompt" or "messages", "answer"}: to be answered and verified; the answer may be missing."""
    answer = pick(record, fields, "answer", ("answer", "target", "solution"), (str, int, float), required=False)
    return [Prompt(record.path, record.line, prompt_messages(record, fields),
                   None if answer is None else _number(answer), record.value)]


def gsm8k(record, fields):
    """{"question", "answer" ending in "#### N"}: the answer is what follows the last ####."""
    worked = pick(record, fields, "answer", ("answer",), str)
    if "####" not in worked:
        raise record.bad("an answer ending in '#### N'", repr(worked[-40:]))
    return [Prompt(record.path, record.line, prompt_messages(record, fields), worked.rsplit("####", 1)[1].strip(),
                   record.value)]


def svamp(record, fields):
    """{"Body", "Question", "Answer"}: the body tells the story, the question follows it."""
    body = pick(record, fields, "body", ("Body",), str).strip()
    question = pick(record, fields, "question", ("Question",), str).strip()
    answer = pick(record, fields, "answer", ("Answer",), (str, int, float))
    story = body if not body or body[-1] in ".!?" else body + "."
    return [Prompt(record.path, record.line, [{"role": "user", "content": f"{story} {question}".strip()}],
                   _number(answer), record.value)]


SHAPES = {
    "text": text,
    "messages": messages,
    "sharegpt": sharegpt,
    "alpaca": alpaca,
    "prompt_response": prompt_response,
    "pairs": preferences.pairs,
    "rankings": preferences.rankings,
    "unpaired": preferences.unpaired,
    "oasst_trees": preferences.oasst_trees,
    "finegrained_qa": preferences.finegrained_qa,
    "prompts": prompts,
    "gsm8k": gsm8k,
    "svamp": svamp,
}


def _exchange(record, fields, prompt, answer):
    system = pick(record, fields, "system", ("system",), str, required=False)
    turns = [{"role": "system", "content": system}] if system and system.strip() else []
    if not prompt.strip():
        raise record.bad("a non-empty prompt", "an empty one", "drop the row, or on_bad_row='skip'")
    turns += [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return Chat(record.path, record.line, turns, record.value)


def _with_tools(turns, record, fields):
    """The tools' descriptions belong to what the model reads: they go at the end of the system turn."""
    tools = pick(record, fields, "tools", ("tools",), (str, list), required=False)
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else None
        except ValueError as error:
            raise record.bad("tools as JSON", f"broken JSON ({error})") from error
    if not tools:
        return turns
    described = "Tools:\n" + json.dumps(tools, ensure_ascii=False)
    if turns and turns[0]["role"] == "system":
        return [{**turns[0], "content": turns[0]["content"] + "\n\n" + described}, *turns[1:]]
    return [{"role": "system", "content": described}, *turns]


def _number(answer):
    """51.0 in a JSON file means 51."""
    return str(int(answer)) if isinstance(answer, float) and answer.is_integer() else str(answer)
