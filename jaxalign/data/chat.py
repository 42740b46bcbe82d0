"""Chat messages → ids and loss mask. The mask is written while rendering, never guessed from ids afterwards."""

import dataclasses
from collections.abc import Mapping

from jaxalign.errors import ConfigError, DataError

# What data sets call a role → (the role's header token, whether the assistant speaks).
ROLES = {
    "system": ("<|system|>", False),
    "user": ("<|user|>", False),
    "assistant": ("<|assistant|>", True),
    "function_call": ("<|assistant|>", True),  # a call is the assistant's own words, so it is trained
    "tool": ("<|tool|>", False),  # what a tool returned is the world's, so it is masked
    "observation": ("<|tool|>", False),
}


@dataclasses.dataclass(frozen=True)
class Template:
    """How a turn is written: `<s>` once, then header, text, end per turn. No </s>: sampling stops at `end`.

    Every turn is encoded by itself between special tokens, so what later turns hold cannot change an earlier one:
    rendering is prefix-stable by construction. A template of another make (`jinja.JinjaTemplate`) needs `roles`, to
    check messages by, `render` and `closing`.
    """

    roles: Mapping[str, tuple[str, bool]] = dataclasses.field(default_factory=lambda: dict(ROLES))
    end: str = "<|end|>"
    generation: str = "<|assistant|>"

    def render(self, messages, tokenizer, add_generation_prompt=False):
        """(ids, mask) of a conversation."""
        ids = list(self.start(tokenizer))
        mask = [0] * len(ids)
        for message in messages:
            turn_ids, turn_mask = self.turn(message, tokenizer)
            ids += turn_ids
            mask += turn_mask
        header = self.header(tokenizer) if add_generation_prompt else []
        return ids + header, mask + [0] * len(header)

    def closing(self, tokenizer):
        """Ids that end a text behind its last turn: none."""
        return []

    def start(self, tokenizer):
        return [tokenizer.bos_id]

    def turn(self, message, tokenizer):
        """(ids, mask) of one message."""
        header, trained = self.roles[message["role"]]
        trained = int(trained and message.get("train", True))
        text = tokenizer.encode(message["content"])
        ids = [tokenizer.chat_ids[header], *text, tokenizer.chat_ids[self.end]]
        return ids, [0] + [trained] * (len(text) + 1)

    def header(self, tokenizer):
        return [tokenizer.chat_ids[self.generation]]


TEMPLATE = Template()


class TemplateFault(ValueError):
    """What a template says against a conversation, or does that it may not."""


def check_messages(messages, path="messages", line=None, template=TEMPLATE):
    """Raises DataError unless `messages` is a non-empty list of {"role", "content"} the template can write."""
    def bad(expected, got, cure=""):
        raise DataError(path, line, expected, got, cure)

    if not isinstance(messages, list) or not messages:
        bad("a non-empty list of messages", _short(messages))
    for number, message in enumerate(messages):
        where = f"message {number}"
        if not isinstance(message, Mapping):
            bad(f"{where} as {{'role', 'content'}}", _short(message))
        role = message.get("role")
        if role not in template.roles:
            bad(f"{where}: role among {', '.join(template.roles)}", repr(role), "map it with fields={'roles': {...}}")
        content = message.get("content")
        if not isinstance(content, str):
            bad(f"{where}: content as text", _short(content))
        if not content.strip() and template.roles[role][1] and message.get("train", True):
            bad(f"{where}: a non-empty answer", "an empty one", "drop the row, or on_bad_row='skip'")


def render(messages, tokenizer, *, add_generation_prompt=False, template=None, require_target=False,
           path="messages", line=None):
    """Ids and loss mask of a conversation; mask 1 on the assistant's text and on the token that ends its turn.

    Args:
      messages: list of {"role", "content"} and optionally "train": False (an assistant turn that is not a target).
      tokenizer: Tokenizer, or a published one.
      template: how it is written; None is the tokenizer's own way.
      add_generation_prompt: end with the assistant's header, for sampling.
      require_target: refuse a rendering whose mask is all zero or all one (a training row always has both).
      path, line: where the row came from, for the error.
    Returns:
      (list of ids, list of 0/1), equally long. mask[i] says whether ids[i] is a target, before any shift.
    Raises:
      DataError: unknown role, content that is not text, an empty answer, a mask without a zero or a one.
    """
    template = template or tokenizer.template
    check_messages(messages, path, line, template)
    try:
        ids, mask = template.render(messages, tokenizer, add_generation_prompt)
    except TemplateFault as fault:
        raise DataError(path, line, "a conversation that the model's chat template can write", str(fault),
                        "drop the row, or on_bad_row='skip'") from None
    if require_target:
        check_mask(mask, path, line)
    return ids, mask


def check_mask(mask, path="messages", line=None):
    """Refuses a chat row in which no token, or every token, is a target: a template gone wrong, or nothing to learn."""
    if not any(mask):
        raise DataError(path, line, "at least one target token (an assistant turn)", "a mask of zeros only",
                        "check the roles and 'train' flags")
    if all(mask):
        raise DataError(path, line, "a mask of assistant tokens only", "a mask of ones only",
                        "the template does not mark its turns")


def check_prefix_stable(tokenizer, template=None):
    """Refuses a template that writes an earlier turn differently once later turns follow, for reinforcement learning:
    there the tokens that were sampled must be the tokens that are trained on. Raises ConfigError."""
    talk = [{"role": "user", "content": "What is 1 + 1?"}, {"role": "assistant", "content": "It is 2.\n"},
            {"role": "user", "content": " And then?"}, {"role": "assistant", "content": "<think>3</think> 4"},
            {"role": "user", "content": "Thanks."}]
    for n in range(4):  # some forget what is far behind
        talk += [{"role": "assistant", "content": f"So {n}?"}, {"role": "user", "content": f"Yes, {n}."}]
    _check_prefixes(talk, 1, tokenizer, template)
    called = [*talk[:2], {"role": "tool", "content": "4"}, *talk[3:6]]  # or what a tool said long ago
    try:
        render(called[:3], tokenizer, template=template)
    except DataError:  # it writes no tool's turn, so none differently
        pass
    else:
        _check_prefixes(called, 1, tokenizer, template)
    told = [{"role": "system", "content": "Be brief."}, *talk]  # which some write into the last question, wherever that is
    try:
        render(told[:2], tokenizer, add_generation_prompt=True, template=template)
    except DataError:  # it writes no system turn, so none differently
        return
    _check_prefixes(told, 2, tokenizer, template)


def _check_prefixes(talk, first, tokenizer, template):
    """Refuses a template that does not write the first turns of a talk, from `first` of them on, as the whole begins, but for
    what ends a text."""
    closing = (template or tokenizer.template).closing(tokenizer)
    try:
        whole, _ = render(talk, tokenizer, template=template)
    except DataError as error:
        raise ConfigError(f"chat template: it does not write all of {len(talk)} turns ({error.got}); a template for reinforcement "
                          "learning must be prefix-stable: give one that is") from None
    for turns in range(first, len(talk)):
        asks = talk[turns]["role"] == "assistant"
        part, _ = render(talk[:turns], tokenizer, add_generation_prompt=asks, template=template)
        if closing and not asks and part[-len(closing):] == closing:
            part = part[:-len(closing)]
        if whole[:len(part)] != part:
            last = talk[turns - 1]
            raise ConfigError(f"chat template: the first {turns} turns, up to the {last['role']}'s {last['content']!r}, are "
                              f"written differently once more follow "
                              f"({tokenizer.decode(part, specials='show')!r} against "
                              f"{tokenizer.decode(whole[:len(part)], specials='show')!r}); a template for "
                              f"reinforcement learning must be prefix-stable: give one that is")


def _short(value):
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
