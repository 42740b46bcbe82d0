"""Chat templates in Jinja, as published with models: sandboxed, bounded, with the mask of the assistant's words."""

import json
import os.path
import re

from jaxalign.data.chat import ROLES, TemplateFault
from jaxalign.errors import ConfigError, get_extra

NAMES = {"function_call": "assistant", "observation": "tool"}  # roles that templates do not know
BROKEN, START, END, OTHER = "\ufdd0", "\ufdd1", "\ufdd2", "\ufdd3"  # noncharacters, which stand in no text
MOST_STEPS, MOST_TEXT = 200_000, 20_000_000  # of loops and calls, and characters, in one rendering
CALL = 4  # steps that a call takes, about as long as so many turns of a loop
MOST_BITS = 256  # of a number
# Methods of texts whose result can have any size, or leads to such.
GROWING = ("center", "encode", "expandtabs", "format", "format_map", "ljust", "maketrans", "rjust", "translate",
           "zfill")  # fmt: skip
UNBOUNDED = ("batch", "center", "format", "indent", "round", "slice", "sum", "urlize", "wordwrap")  # filters like them


class JinjaTemplate:
    """A template's source. It sees the messages and the names of special tokens: no file, no clock, no attribute with
    an underscore, and a bounded number of steps.

    The mask is 1 on what stands inside `{% generation %}` where the template has that, else on what each assistant turn
    adds to the prompt before it (or, where a template writes a turn otherwise once others follow, on its content); and
    on the special token that ends the turn.

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
        self.source, self.tokens = source, dict(tokens)
        self.roles = {role: (NAMES.get(role, role), trained) for role, (_, trained) in ROLES.items()}
        try:
            self._template, self._budget = _compiled(source)
        except jinja2.TemplateError as error:
            raise ConfigError(f"chat template, line {getattr(error, 'lineno', '?')}: {error}") from None
        self._marks = bool(re.search(r"\{%-?\s*generation\s*-?%\}", source))

    def render(self, messages, tokenizer, add_generation_prompt=False):
        """(ids, mask) of a conversation. Raises TemplateFault."""
        longest_first = sorted(tokenizer.special_texts, key=len, reverse=True)
        specials = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        written = [self._message(message, specials) for message in messages]
        marked = self._text(written, add_generation_prompt)
        if self._marks:
            text, spans = _unmarked(marked)
        else:
            text, spans = marked, self._spans(written, marked)
        counted = [m for m in messages if self.roles[m["role"]][1]]
        if len(spans) != len(counted):
            raise TemplateFault(f"its {{% generation %}} marks {len(spans)} turns of {len(counted)} by the assistant")
        spans = [_to_its_end(text, span, specials) for span in spans]
        tokens = tokenizer.encode_rendered(text, {start for start, _ in spans}, specials, BROKEN)
        spans = [span for span, message in zip(spans, counted) if message.get("train", True)]
        # SentencePiece's space before a word may have no width: where one span ends it is the next part's.
        mask = [int(any(start <= s < end and e <= end for start, end in spans)) for _, s, e in tokens]
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

    def _spans(self, messages, whole):
        spans = []
        for n, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            try:
                before, after = self._text(messages[:n], True), self._text(messages[:n + 1], False)
            except TemplateFault:
                before, after = "", OTHER
            if before and after.startswith(before) and whole.startswith(after):
                spans.append((len(before), len(after)))
                continue
            other = self._text([*messages[:n], {**message, "content": OTHER}, *messages[n + 1:]], False)
            start = len(os.path.commonprefix([whole, other]))
            if OTHER not in other:
                raise TemplateFault(f"turn {n + 1}, the assistant's, is not written at all")
            spans.append((start, len(whole) - len(os.path.commonprefix([whole[start:][::-1], other[::-1]]))))
        return spans


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


class _Budget:
    """How many steps a rendering may still take."""

    def __init__(self):
        self.begin()

    def begin(self):
        self.steps = MOST_STEPS

    def step(self, cost=1):
        self.steps -= cost
        if self.steps < 0:
            raise TemplateFault(f"it takes more than {MOST_STEPS} steps")

    def counted(self, items):
        for item in items:
            self.step()
            yield item

    def nested(self, value):
        """A value none of whose parts holds itself again and again: as text it would have any size."""
        inside = [value]
        while inside:
            part = inside.pop()
            if isinstance(part, (list, tuple, dict)):
                self.step()
                inside += part.values() if isinstance(part, dict) else part
        return value


def _bounded(value):
    if isinstance(value, (str, list, tuple)) and len(value) > MOST_TEXT:
        raise TemplateFault(f"it makes a text of more than {MOST_TEXT} characters")
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise TemplateFault(f"it makes a number of more than {MOST_BITS} bits")
    return value


def _concatenated(parts, between=""):
    """Texts put together, unless that makes too long a one."""
    parts = list(parts)
    if sum(map(len, parts)) + len(between) * len(parts) > MOST_TEXT:
        raise TemplateFault(f"it makes a text of more than {MOST_TEXT} characters")
    return between.join(parts)


def _replaced(text, old, new, count=-1):
    """`text.replace`, unless that makes too long a text."""
    text, old, new = str(text), str(old), str(new)
    if len(text) + text.count(old) * len(new) > MOST_TEXT:
        raise TemplateFault(f"it makes a text of more than {MOST_TEXT} characters")
    return text.replace(old, new, -1 if count is None else count)


def _joined(parts, between="", attribute=None):
    if attribute is not None:
        raise TemplateFault("it joins by an attribute; use map first")
    return _concatenated(map(str, parts), str(between))


def _compiled(source):
    """(a template that may do little and not for long, its budget)."""
    import jinja2
    from jinja2 import ext, nodes, sandbox, utils

    budget = _Budget()

    class Generation(ext.Extension):
        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

        def _mark(self, caller):
            return START + caller() + END

    class Sandbox(sandbox.ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(["+", "*", "**", "%"])
        concat = staticmethod(_concatenated)

        def call_binop(self, context, operator, left, right):
            if operator == "**" or operator == "%" and isinstance(left, str) or operator == "*" and any(
                    isinstance(a, (str, list, tuple)) and len(a) * b > MOST_TEXT
                    for a, b in ((left, right), (right, left)) if isinstance(b, int)):
                raise TemplateFault(f"it computes {type(left).__name__} {operator} {type(right).__name__}")
            return _bounded(super().call_binop(context, operator, left, right))

        def call(self, context, function, *args, **kwargs):
            budget.step(CALL)
            text, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
            if isinstance(text, str) and name in ("join", "replace"):
                return _concatenated(*args, between=text) if name == "join" else _replaced(text, *args, **kwargs)
            return budget.nested(_bounded(super().call(context, function, *args, **kwargs)))

        def is_safe_attribute(self, value, name, found):
            if isinstance(value, (int, float, bytes)) or isinstance(value, str) and name in GROWING:
                return False
            return super().is_safe_attribute(value, name, found)

    class Namespace(utils.Namespace):
        def __repr__(self):
            return "<Namespace>"  # and not what it holds, which may be itself again and again

    def raise_exception(message):
        raise TemplateFault(str(message))

    def to_json(value, indent=None, ensure_ascii=False, **_):
        return _bounded(json.dumps(value, ensure_ascii=ensure_ascii, indent=min(indent, 8) if indent else None))

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols])
    for name in UNBOUNDED:
        del environment.filters[name]
    # No clock (strftime_now): a template that writes today's date falls back on the one its model was trained with.
    environment.filters |= {"tojson": to_json, "counted": budget.counted, "nested": budget.nested, "join": _joined,
                            "replace": _replaced}
    environment.globals = {"raise_exception": raise_exception, "namespace": Namespace,
                           "range": environment.globals["range"], "dict": dict}
    tree = environment.parse(source)
    for loop in list(tree.find_all(nodes.For)):
        if loop.recursive:
            raise jinja2.TemplateSyntaxError("recursive loops are not allowed", loop.lineno)
        loop.iter = nodes.Filter(loop.iter, "counted", [], [], None, None).set_lineno(loop.lineno)
    _guard(tree, nodes)
    code = environment.compile(tree)
    return environment.template_class.from_code(environment, code, environment.make_globals(None)), budget


def _guard(node, nodes):
    """Puts a filter in place of every `~`, which could double a text again and again, and around every list and
    mapping, which could hold itself twice, again and again."""
    for field, value in node.iter_fields():
        children = value if isinstance(value, list) else [value]
        for n, child in enumerate(children):
            if not isinstance(child, nodes.Node):
                continue
            _guard(child, nodes)
            made = None
            if isinstance(child, nodes.Concat):
                made = nodes.Filter(nodes.List(child.nodes), "join", [], [], None, None)
            elif isinstance(child, (nodes.List, nodes.Dict)) or isinstance(child, nodes.Tuple) and child.ctx == "load":
                made = nodes.Filter(child, "nested", [], [], None, None)
            if made is None:
                continue
            made.set_lineno(child.lineno)
            if isinstance(value, list):
                value[n] = made
            else:
                setattr(node, field, made)
