"""Jinja templates compiled so that they may do little and not for long."""

import datetime
import json
import re

from jaxalign.data.budget import MOST_TEXT, Budget, bounded, replaced
from jaxalign.data.chat import TemplateFault

START, END = "\ufdd1", "\ufdd2"  # noncharacters, which stand in no text; they mark what `{% generation %}` encloses
# Methods of texts whose result can have any size, or leads to such, or takes longer than its size says.
GROWING = ("center", "encode", "expandtabs", "format", "format_map", "ljust", "maketrans", "rjust", "striptags",
           "translate", "unescape", "zfill")  # fmt: skip
UNBOUNDED = ("batch", "center", "format", "indent", "pprint", "round", "slice", "striptags", "sum", "urlencode", "urlize",
             "wordcount", "wordwrap", "xmlattr")  # filters like them
SCOPE = ("_block_vars", "_loop_vars")  # what compiled templates hand to each call inside a loop, beside its arguments
# What `strftime_now` writes, always: the same talk is the same tokens tomorrow. Llama 3.2's templates fall back on this date.
TODAY = datetime.datetime(2024, 7, 26)
FORM = re.compile(r"(?:[^%]|%-?[A-Za-z%]){0,100}")
TESTS = {"==": "eq", "eq": "eq", "equalto": "eq", "!=": "ne", "ne": "ne", ">": "gt", "gt": "gt", "greaterthan": "gt",
         ">=": "gteq", "ge": "gteq", "<": "lt", "lt": "lt", "lessthan": "lt", "<=": "lteq", "le": "lteq"}  # fmt: skip


def compiled(source):
    """(a template, its budget, of which it takes what it does). Raises jinja2.TemplateError."""
    import jinja2
    from jinja2 import ext, nodes, runtime, sandbox, utils

    budget = Budget()

    class Generation(ext.Extension):
        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

        def _mark(self, caller):
            return START + caller() + END

    class Sandbox(sandbox.ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(["+", "-", "*", "**", "%"])
        concat = staticmethod(budget.concatenated)

        def call_binop(self, context, operator, left, right):
            if operator == "**" or operator == "%" and isinstance(left, str) or operator == "*" and any(
                    isinstance(a, (str, list, tuple)) and len(a) * b > MOST_TEXT
                    for a, b in ((left, right), (right, left)) if isinstance(b, int)):
                raise TemplateFault(f"it computes {type(left).__name__} {operator} {type(right).__name__}")
            if operator == "-":  # of the keys of mappings
                budget.weigh([left, right])
            return budget.made(bounded(super().call_binop(context, operator, left, right)))

        def call(self, context, function, *args, **kwargs):
            scope = {name: kwargs.pop(name) for name in SCOPE if name in kwargs}

            def run(function, *args, **kwargs):
                return super(Sandbox, self).call(context, function, *args, **kwargs, **scope)

            return budget.call(function, args, kwargs, isinstance(function, runtime.Macro), run)

        def is_safe_attribute(self, value, name, found):
            if isinstance(value, (int, float, bytes)) or isinstance(value, str) and name in GROWING:
                return False
            return super().is_safe_attribute(value, name, found)

    class Namespace(utils.Namespace):
        def __repr__(self):
            return "<Namespace>"  # and not what it holds, which may be itself again and again

    def raise_exception(message):
        raise TemplateFault(str(message)[:300])

    def strftime_now(form):
        if not isinstance(form, str) or not FORM.fullmatch(form):
            raise TemplateFault(f"strftime_now({str(form)[:50]!r}) is no plain form of a date")
        return TODAY.strftime(form)

    def to_json(value, indent=None, ensure_ascii=False, **_):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=min(indent, 8) if indent else None)

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols],
                          finalize=budget.weigh)
    for name in UNBOUNDED:
        del environment.filters[name]
    environment.filters |= {"tojson": to_json, "join": budget.joined, "replace": replaced}
    environment.filters = {name: budget.filter(name, function) for name, function in environment.filters.items()} | {
        "counted": budget.counted, "nested": budget.nested, "made": budget.made, "compared": budget.compared}
    environment.tests |= {name: _test(budget, op) for name, op in TESTS.items()} | {
        "in": budget.contained, "lower": lambda value: str(budget.weigh(value)).islower(),
        "upper": lambda value: str(budget.weigh(value)).isupper()}
    environment.globals = {"raise_exception": raise_exception, "namespace": Namespace, "strftime_now": strftime_now,
                           "range": environment.globals["range"], "dict": dict}
    tree = environment.parse(source)
    for loop in list(tree.find_all(nodes.For)):
        if loop.recursive:
            raise jinja2.TemplateSyntaxError("recursive loops are not allowed", loop.lineno)
        loop.iter = nodes.Filter(loop.iter, "counted", [], [], None, None).set_lineno(loop.lineno)
    _guard(tree, nodes)
    code = environment.compile(tree)
    return environment.template_class.from_code(environment, code, environment.make_globals(None)), budget


def _test(budget, op):
    return lambda left, right: budget.compared(left, op, right)


def _guard(node, nodes):
    """Puts filters, which count, in place of what else costs nothing whatever its size: comparisons, slices, every `~`,
    which could double a text again and again, and every list and mapping, which could hold itself twice, again and
    again."""
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
            elif isinstance(child, nodes.Getitem) and isinstance(child.arg, nodes.Slice):
                made = nodes.Filter(child, "made", [], [], None, None)
            elif isinstance(child, nodes.Compare):
                others = [part for operand in child.ops for part in (nodes.Const(operand.op), operand.expr)]
                made = nodes.Filter(child.expr, "compared", others, [], None, None)
            if made is None:
                continue
            made.set_lineno(child.lineno)
            if isinstance(value, list):
                value[n] = made
            else:
                setattr(node, field, made)
