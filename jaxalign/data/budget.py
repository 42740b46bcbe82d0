"""What the rendering of a chat template may cost: steps, characters, seconds. Nothing that a template does is free."""

import functools
import operator
import threading
import time
import types

from jaxalign.data.chat import TemplateFault

MOST_STEPS = 200_000  # of loops, calls and filters, and parts of lists and mappings that are looked through
MOST_TEXT = 20_000_000  # characters of one text
MOST_MADE = 200_000_000  # characters that are made or looked through, taken together
MOST_SECONDS = 3.0  # of the thread's own computing: a machine that is busy or sleeps refuses nothing
MOST_BITS = 256  # of a number
MOST_STRIPPED = 100  # characters that are stripped off, each of which is looked for at each place
CALL = 4  # steps that a call takes, about as long as so many turns of a loop
PLACE, PART = 8, 64  # characters that a place in a list counts for, and a part that a text is split into
TITLE = 20  # times as long as other filters for a character
CHECKED = 100  # steps after which the time is looked at

MAPPINGS = (dict, types.MappingProxyType)
LISTS = (list, tuple, set, frozenset, type({}.keys()), type({}.values()), type({}.items()))
SIZED = (*LISTS, *MAPPINGS)
PLAIN = (str, int, float, type(None), range, *SIZED)
# Filters that go through their input item by item, and those that look at no more than its first or last one.
BY_ITEM = ("list", "map", "reject", "rejectattr", "select", "selectattr")
AT_ONCE = ("attr", "count", "d", "default", "first", "items", "join", "last", "length", "random")
BY_ATTRIBUTE = ("groupby", "max", "min", "sort", "unique")  # of items, so whatever an attribute may hold
FROM_THE_RIGHT = ("rfind", "rindex", "rpartition", "rsplit")  # which take as long as both texts' product
STRIPS = ("lstrip", "rstrip", "strip")
LINE_ENDS = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
COMPARED = {"eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "lteq": operator.le, "gt": operator.gt,
            "gteq": operator.ge}  # fmt: skip


class Budget(threading.local):
    """What a rendering may still cost, for each thread its own."""

    def __init__(self):
        self.begin()

    def begin(self):
        self.steps, self.characters, self._unchecked = MOST_STEPS, MOST_MADE, 0
        self._until = time.thread_time() + MOST_SECONDS

    def step(self, cost=1):
        self.steps -= cost
        if self.steps < 0:
            raise TemplateFault(f"it takes more than {MOST_STEPS} steps")
        self._check(cost)

    def make(self, size):
        """Counts so many characters."""
        self.characters -= size
        if self.characters < 0:
            raise TemplateFault(f"its texts come to more than {MOST_MADE} characters")
        self._check(size >> 10)

    def _check(self, cost):
        self._unchecked += cost
        if self._unchecked >= CHECKED:
            self._unchecked = 0
            if time.thread_time() > self._until:
                raise TemplateFault(f"it takes more than {MOST_SECONDS:g} seconds")

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
                self.step(1 + len(part))
                inside += part.values() if isinstance(part, dict) else part
        return value

    def made(self, value):
        """A value that was made, itself and not what it holds."""
        if isinstance(value, str):
            self.make(len(value))
        elif isinstance(value, SIZED) or isinstance(value, range):
            self.make(PLACE * len(value))
        return value

    def weigh(self, value, plain=False):
        """A value with all that it holds, as often as it is held; with `plain`, which holds nothing but data."""
        inside = [value]
        while inside:
            part = inside.pop()
            if plain and not isinstance(part, PLAIN):
                raise TemplateFault(f"it compares a {type(part).__name__}, which is no text, number, list or mapping")
            self.made(part)
            if isinstance(part, SIZED):
                self.step(1 + len(part))
                inside += part
                inside += part.values() if isinstance(part, MAPPINGS) else ()
        return value

    def compared(self, left, *others):
        """Whether `left op right` holds, and what `others` may go on with: op, right, op, right."""
        for op, right in zip(others[::2], others[1::2]):
            if op in ("in", "notin"):
                holds = self.contained(left, right) == (op == "in")
            else:
                self._alike(left, right)
                holds = COMPARED[op](left, right)
            if not holds:
                return holds
            left = right
        return holds

    def _alike(self, left, right):
        """Counts what comparing takes, which is no more than the smaller of the two holds."""
        if isinstance(left, str) and isinstance(right, str):
            self.make(min(len(left), len(right)))
        elif isinstance(left, SIZED) and isinstance(right, SIZED):
            self.weigh(min(left, right, key=len))

    def contained(self, left, right):
        """`left in right`."""
        if isinstance(right, (*LISTS, range)) or _runs_out(right):
            def items():
                for item in self.counted(right):
                    self._alike(left, item)
                    yield item
            return left in items()
        self.made(right) if isinstance(right, str) else self.weigh(left)
        return left in right

    def filter(self, name, function):
        """A filter that costs what it looks through and what it makes."""
        first = int(hasattr(function, "jinja_pass_arg"))  # what the value may stand after: the environment, or the like

        @functools.wraps(function)
        def run(*args, **kwargs):
            self.step()
            value, rest = args[first], args[first + 1:]
            if name in BY_ITEM:
                value = self.counted(value) if value else value
            elif name not in AT_ONCE and not (name == "reverse" and isinstance(value, list)):
                weigh = functools.partial(self.weigh, plain=name in BY_ATTRIBUTE)
                value = map(weigh, self.counted(value)) if _runs_out(value) else weigh(value)
                self.weigh([*rest, *kwargs.values()])
            if name == "title":
                self.make(TITLE * len(value) if isinstance(value, str) else 0)
            if name == "trim":
                _check_stripped(*rest, *kwargs.values())
            result = bounded(function(*args[:first], value, *rest, **kwargs))
            return self.counted(result) if _runs_out(result) else self.made(result)
        return run

    def call(self, function, args, kwargs, by_itself, call):
        """What a call gives. `by_itself`: it counts what it does, as macros do; `call`: runs all that are not known here."""
        self.step(CALL + len(args) + len(kwargs))
        owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
        if not by_itself:
            self.weigh([*args, *kwargs.values()])
        if isinstance(owner, str):
            return self.made(bounded(self._text_method(owner, name, function, args, kwargs, call)))
        if isinstance(owner, (*LISTS, range)) or name == "copy":
            self.weigh(owner)
        return self.made(self.nested(bounded(call(function, *args, **kwargs))))

    def _text_method(self, text, name, function, args, kwargs, call):
        if name not in ("startswith", "endswith"):
            self.make(len(text))
        if name == "join":
            return self.concatenated(self.counted(*args), between=text)
        if name == "replace":
            return replaced(text, *args, **kwargs)
        if name in STRIPS:
            _check_stripped(*args)
        separator = args[0] if args else kwargs.get("sep")
        if name in FROM_THE_RIGHT and isinstance(separator, str):
            self.make(len(text) * len(separator) // 8)
        if name in ("split", "rsplit"):
            most, left = args[1] if len(args) > 1 else kwargs.get("maxsplit", -1), self.characters // PART + 1
            parts = call(function, separator, most if 0 <= most < left else left)  # no more than will be counted
            self.make(PART * len(parts))
            return parts
        if name == "splitlines":
            self.make(PART * sum(map(text.count, LINE_ENDS)))
        return call(function, *args, **kwargs)

    def concatenated(self, parts, between=""):
        """Texts put together, unless that makes too long a one."""
        parts = list(parts)
        size = sum(map(len, parts)) + len(between) * len(parts)
        if size > MOST_TEXT:
            raise too_long()
        self.make(size)
        return between.join(parts)

    def joined(self, parts, between="", attribute=None):
        """The filter join."""
        if attribute is not None:
            raise TemplateFault("it joins by an attribute; use map first")
        return self.concatenated((str(self.weigh(part)) for part in self.counted(parts)), str(self.weigh(between)))


def bounded(value):
    """A value that is no too long a text, no too large a number. Raises TemplateFault."""
    if isinstance(value, (str, list, tuple)) and len(value) > MOST_TEXT:
        raise too_long()
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise TemplateFault(f"it makes a number of more than {MOST_BITS} bits")
    return value


def replaced(text, old, new, count=-1):
    """`text.replace`, unless that makes too long a text."""
    text, old, new = str(text), str(old), str(new)
    if len(text) + text.count(old) * len(new) > MOST_TEXT:
        raise too_long()
    return text.replace(old, new, -1 if count is None else count)


def too_long():
    """The fault of making too long a text."""
    return TemplateFault(f"it makes a text of more than {MOST_TEXT} characters")


def _runs_out(value):
    """Whether a value is an iterator, which gives its items once."""
    return hasattr(type(value), "__next__")


def _check_stripped(characters=None, *_):
    if isinstance(characters, str) and len(characters) > MOST_STRIPPED:
        raise TemplateFault(f"it strips off more than {MOST_STRIPPED} characters")
