"""Chat templates in Jinja, as published with models: sandboxed, bounded, with the mask of the assistant's words."""

import os.path
import re

from jaxalign.data.chat import ROLES, TemplateFault
from jaxalign.data.sandbox import END, START, compiled
from jaxalign.errors import ConfigError, get_extra

NAMES = {"function_call": "assistant", "observation": "tool"}  # roles that templates do not know
BROKEN, OTHER = "\ufdd0", "\ufdd3"  # noncharacters, which stand in no text


class JinjaTemplate:
    """A template's source. It sees the messages and the names of special tokens: no file, no clock, no attribute with
    an underscore, and a bounded number of steps, characters and seconds.

    The mask is 1 on what stands inside `{% generation %}` where the template has that, else on what each assistant turn
    adds to the prompt before it (or, where a template writes a turn otherwise once others follow, on its content); and
    on the special token that ends the turn. What some, as Phi-3's, write behind the last turn to end the text is no part of it.

    Text that spells a special token is never one: inside contents such spellings are broken up while the template
    runs, and put together again before they are encoded as plain text.

    Args:
      source: the template.
      tokens: names of special tokens, such as bos_token.
    """

    def __init__(self, source, tokens):
        try:
            import jinja2
        except ImportError:
            raise ConfigError(f"chat templates need the package jinja2; {get_extra('hf')}") from None
        self.source, self.tokens, self._closings = source, dict(tokens), {}
        self.roles = {role: (NAMES.get(role, role), trained) for role, (_, trained) in ROLES.items()}
        try:
            self._template, self._budget = compiled(source)
        except jinja2.TemplateError as error:
            raise ConfigError(f"chat template, line {getattr(error, 'lineno', '?')}: {error}") from None
        except (RecursionError, ValueError) as error:  # nested too deeply; a number that Python does not read
            raise ConfigError(f"chat template: it cannot be read ({str(error)[:100]})") from None
        self._marks = bool(re.search(r"\{%[-+]?\s*generation\s*[-+]?%\}", re.sub(r"(?s)\{#.*?#\}", "", source)))

    def render(self, messages, tokenizer, add_generation_prompt=False):
        """(ids, mask) of a conversation. Raises TemplateFault."""
        specials = _pattern(tokenizer)
        written = [self._message(message, specials) for message in messages]
        marked = self._text(written, add_generation_prompt)
        closing = self._closing(specials)
        text, spans = _unmarked(marked)
        inside = len(text.removesuffix("" if add_generation_prompt else closing))
        if not self._marks:
            spans = self._spans(written, text, closing, add_generation_prompt)
        spans = [(start, min(end, inside)) for start, end in spans if start < inside or not closing]
        counted = [m for m in messages if self.roles[m["role"]][1]]
        if len(spans) != len(counted):
            raise TemplateFault(f"its {{% generation %}} marks {len(spans)} turns of {len(counted)} by the assistant")
        spans = [_to_its_end(text, span, specials) for span in spans]
        tokens = tokenizer.encode_rendered(text, {start for start, _ in spans}, specials, BROKEN)
        spans = [span for span, message in zip(spans, counted) if message.get("train", True)]
        # SentencePiece's space before a word may have no width: where one span ends it is the next part's. A special token may
        # take the white space behind it along, which stands outside the turn that it ends.
        mask = [int(any(start <= s < end and (e <= end or i in tokenizer.special_ids) for start, end in spans))
                for i, s, e in tokens]
        return [i for i, *_ in tokens], mask

    def _message(self, message, specials):
        content = message["content"]
        if any(c in content for c in (BROKEN, START, END, OTHER)):
            raise TemplateFault("a turn holds the noncharacters U+FDD0 to U+FDD3")
        content = specials.sub(lambda m: m[0][0] + BROKEN + m[0][1:], content)
        return {**{k: v for k, v in message.items() if k != "train"}, "role": self.roles[message["role"]][0],
                "content": content}

    def _text(self, messages, add_generation_prompt):
        self._budget.begin()
        try:
            return self._template.render(messages=messages, add_generation_prompt=add_generation_prompt, **self.tokens)
        except TemplateFault:
            raise
        except RecursionError:
            raise TemplateFault("it calls itself without end") from None
        except Exception as error:  # whatever the template's own code raises
            raise TemplateFault(f"{type(error).__name__}: {str(error)[:300]}") from None

    def closing(self, tokenizer):
        """Ids of what this writes behind a conversation's last turn to end the text: of a special token, and white space after it."""
        specials = _pattern(tokenizer)
        return [i for i, *_ in tokenizer.encode_rendered(self._closing(specials), (), specials, BROKEN)]

    def _closing(self, specials):
        """Its text; empty where there is none: it stands behind a turn that has an end, and goes once another follows."""
        if specials.pattern not in self._closings:
            self._closings[specials.pattern] = self._find_closing(specials)
        return self._closings[specials.pattern]

    def _find_closing(self, specials):
        talk = [{"role": role, "content": "Hello."} for role in ("user", "assistant", "user")]
        try:
            whole, longer = (_unmarked(self._text(talk[:n], False))[0] for n in (2, 3))
        except TemplateFault:
            return ""
        last = [*specials.finditer(whole)][-2:]
        if len(last) < 2 or longer.startswith(whole):
            return ""
        before, closing = whole[:last[1].start()], whole[last[1].start():]
        ended = not before[last[0].end():].strip() and not closing[len(last[1][0]):].strip()
        return closing if ended and longer.startswith(before) and longer.endswith(closing) else ""

    def _spans(self, messages, whole, closing, add_generation_prompt):
        spans = []
        for n, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            try:
                before, after = self._text(messages[:n], True), self._text(messages[:n + 1], False).removesuffix(closing)
            except TemplateFault:
                before, after = "", OTHER
            if before and after.startswith(before) and whole.startswith(after):
                spans.append((len(before), len(after)))
                continue
            other = self._text([*messages[:n], {**message, "content": OTHER}, *messages[n + 1:]], add_generation_prompt)
            start = len(os.path.commonprefix([whole, other]))
            if OTHER not in other:
                raise TemplateFault(f"turn {n + 1}, the assistant's, is not written at all")
            spans.append((start, len(whole) - len(os.path.commonprefix([whole[start:][::-1], other[::-1]]))))
        return spans


def _pattern(tokenizer):
    """Of the special tokens' texts."""
    longest_first = sorted(tokenizer.special_texts, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _unmarked(marked):
    """(text without marks, spans of it that stood between marks)."""
    text, spans = "", []
    for part in re.split(f"({START}|{END})", marked):
        if part == START:
            spans.append((len(text), len(text)))
        elif part == END:
            spans[-1] = (spans[-1][0], len(text))
        else:
            text += part
    return text, spans


def _to_its_end(text, span, specials):
    """The span up to the special token that ends the turn, which is what sampling stops at."""
    start, end = span
    inside = list(specials.finditer(text, start, end))
    if inside and not text[inside[-1].end():end].strip():
        return start, inside[-1].end()
    after = specials.match(text, end + len(text[end:]) - len(text[end:].lstrip()))
    if after is None:
        raise TemplateFault(f"no special token ends the assistant's turn {text[start:end][-40:]!r}, so a model would "
                            "never learn to stop")
    return start, after.end()
