"""`jaxalign sample`: one prompt, a file of prompts, or a chat that keeps its turns."""

import contextlib
import json
import pathlib
import sys

from jaxalign.cli.flags import check_text
from jaxalign.errors import ConfigError, DataError, JaxalignError

CHAT_HELP = "/reset starts over, /exit or Ctrl-D leaves, Ctrl-C stops an answer"


def sample(values, _, __):
    """Reads the flags of `jaxalign sample` and answers."""
    from jaxalign.cli.commands import need_checkpoint  # which imports this module

    if values.prompt is not None and values.prompts_file is not None:
        raise ConfigError("--prompt and --prompts_file were both given; give one of them")
    if values.raw and values.system is not None:
        raise ConfigError("--raw goes on with plain text, --system belongs to the chat template; drop one of them")
    need_checkpoint(values.checkpoint)
    prompts = None if values.prompts_file is None else _read_prompts(pathlib.Path(values.prompts_file), values.raw)
    from jaxalign import stages

    assistant = stages.load_assistant(values.checkpoint)
    options = {name: values[name].value for name in ("temperature", "top_k", "top_p", "min_p", "max_new_tokens")}
    if values.stop == "":
        raise ConfigError("--stop is empty, and every answer would end at once; give the text that ends one")
    options["stop_strings"] = () if values.stop is None else (values.stop,)
    answer = assistant.complete if values.raw else assistant.reply
    opening = [] if values.system is None else [{"role": "system", "content": values.system}]
    if values.prompt is not None:
        request = values.prompt if values.raw else [*opening, {"role": "user", "content": values.prompt}]
        print(answer([request], seed=values.seed, **options)[0])
    elif prompts is not None:
        _answer_file(answer, prompts, opening, values, options)
    else:
        _chat(answer, opening, values, options)


def _answer_file(answer, prompts, opening, values, options):
    """One JSON line for every prompt, in order, flushed batch by batch."""
    for start in range(0, len(prompts), values.batch_size):
        batch = prompts[start : start + values.batch_size]
        requests = batch if values.raw else [[*opening, *messages] for messages in batch]
        # Another seed for each batch: equal prompts in different batches should not get equal draws.
        for prompt, text in zip(batch, answer(requests, seed=values.seed + start, **options), strict=True):
            one_turn = not values.raw and len(prompt) == 1
            asked = {"prompt": prompt[0]["content"]} if one_turn else {"prompt" if values.raw else "messages": prompt}
            print(json.dumps({**asked, "answer": text}, ensure_ascii=False))
        sys.stdout.flush()


def _read_prompts(path, raw):
    """Lines of text, or JSONL objects with `prompt` or `messages`: strings if raw, else lists of messages."""
    from jaxalign.data.sources import decode, lines

    if not path.exists() or path.is_dir():  # a pipe will do
        raise ConfigError(f"--prompts_file={path}: no such file")
    names = path.name.removesuffix(".gz").removesuffix(".zst")
    prompts = []
    for number, line in enumerate(lines(path), 1):
        line = decode(path, number, line).rstrip("\r\n")
        if line.strip():
            is_json = names.endswith((".jsonl", ".ndjson", ".json")) or line.lstrip().startswith("{")
            prompts.append(_prompt(path, number, line, is_json, raw))
    if not prompts:
        raise DataError(path, None, "at least one prompt", "an empty file")
    return prompts


def _prompt(path, number, line, is_json, raw):
    from jaxalign.data.chat import check_messages

    try:
        row = json.loads(line) if is_json else line
    except json.JSONDecodeError as error:
        raise DataError(path, number, "a JSON object on one line", f"{line[:40]!r}", error.msg) from None
    row = {"prompt": row} if isinstance(row, str) else row
    prompt = row.get("prompt") if isinstance(row, dict) else None
    messages = row.get("messages") if isinstance(row, dict) else None
    if isinstance(prompt, str):
        return prompt if raw else [{"role": "user", "content": prompt}]
    if not isinstance(messages, list) or not messages or raw:
        expected = 'an object with a text "prompt"' + ("" if raw else ' or a list "messages"')
        raise DataError(path, number, expected, line[:40])
    check_messages(messages, path, number)
    return messages


def _chat(answer, opening, values, options):
    """Reads turns until /exit or the end of the input; a turn whose answer fails or is stopped is taken back."""
    terminal = sys.stdin.isatty()
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="surrogateescape")  # bytes that are no text are found below, and cost one turn
    if terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (gives input() a history and arrow keys; some Pythons lack it)
        print(CHAT_HELP)
    messages, turn = list(opening), 0
    while True:
        try:
            line = input("\nyou> " if terminal else "").strip()
        except EOFError:
            if terminal:
                print()
            return
        except KeyboardInterrupt:
            print(f"\n{CHAT_HELP}")
            continue
        if line in ("/exit", "/quit"):
            return
        if line == "/reset":
            messages = list(opening)
            print("(a new conversation)")
        elif line.startswith("/"):
            print(CHAT_HELP)
        elif line:
            turn += 1
            request = line if values.raw else [*messages, {"role": "user", "content": line}]
            try:
                check_text("this line", line)
                text = answer([request], seed=values.seed + turn, **options)[0]
            except KeyboardInterrupt:
                print("\n(stopped; the turn is taken back)")
                continue
            except JaxalignError as error:
                print(f"({error}; the turn is taken back)")
                continue
            print(text)
            if not values.raw:
                messages = [*request, {"role": "assistant", "content": text}]
