"""Commands, their flags and their help; absl parses, every mistake is one message with the nearest right name."""

import difflib
import math
import re
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from absl import flags as absl_flags

from jaxalign.errors import ConfigError


class Flag(NamedTuple):
    """One flag of a command; `kind` is a key of KINDS."""

    name: str
    kind: str
    default: Any
    help: str
    required: bool = False
    least: float | None = None
    most: float | None = None


class Command(NamedTuple):
    """One subcommand. `run(values, config, sources)` returns an exit code or None."""

    name: str
    summary: str
    run: Callable
    flags: Sequence[Flag]
    examples: Sequence[str]
    takes_config: bool = False
    positional: str = ""


KINDS = {
    "text": absl_flags.DEFINE_string,
    "file": absl_flags.DEFINE_string,
    "dir": absl_flags.DEFINE_string,
    "int": absl_flags.DEFINE_integer,
    "float": absl_flags.DEFINE_float,
    "bool": absl_flags.DEFINE_bool,
    "path:shape": absl_flags.DEFINE_multi_string,
}
DEBUG = Flag("debug", "bool", False, "show the traceback of an error")
CONFIG_HELP = "a Python file with get_config(); any of its values can be given as --config.key=VALUE"


def parse(command: Command, argv: Sequence[str]):
    """(flag values, config or None, positional arguments) of one command line.

    Raises:
      ConfigError: unknown flag or config key (with the nearest right name), wrong type, missing file, missing flag.
    """
    values = absl_flags.FlagValues()
    values.set_gnu_getopt(True)  # flags may follow positional arguments
    for flag in (*command.flags, DEBUG):
        KINDS[flag.kind](flag.name, flag.default, flag.help, flag_values=values)
    argv = [_underscored(argument) for argument in argv]
    config = None
    if command.takes_config:
        from jaxalign import config as configs

        path, argv = _take_config(command, argv)
        _add_import_paths(path)
        config = configs.load(path)
        configs.define_overrides(config, values, argv)
    try:
        rest = values(["jaxalign", *argv])[1:]
    except absl_flags.UnrecognizedFlagError as error:
        raise ConfigError(_unknown(command, error.flagname)) from None
    except absl_flags.Error as error:
        raise ConfigError(_readable(str(error), values)) from None
    for flag in command.flags:
        if flag.required and values[flag.name].value in (None, []):
            raise ConfigError(f"jaxalign {command.name} needs --{flag.name}: {flag.help}; e.g. {command.examples[0]}")
        _check_value(flag, values[flag.name].value)
    if rest and not command.positional:
        raise ConfigError(
            f"jaxalign {command.name} takes flags only, got {rest[0]!r}; see jaxalign {command.name} --help"
        )
    return values, config, rest


def _check_value(flag, value):
    if flag.kind == "text" and value is not None:
        check_text(f"--{flag.name}", value)
    # NaN is at neither side of anything, and refused.
    if flag.least is None or value is None or flag.least <= value <= (math.inf if flag.most is None else flag.most):
        return
    expected = f"{flag.least} or more" if flag.most is None else f"{flag.least} to {flag.most}"
    raise ConfigError(f"--{flag.name}: expected {expected}, got {value}")


def check_text(name, text):
    """Raises ConfigError for bytes that were no UTF-8, which Python keeps in a string as half characters."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        got = f"{text[error.start]!r} at character {error.start + 1}"
        raise ConfigError(f"{name}: expected UTF-8 text, got {got}") from None


def overview(commands) -> str:
    """The text of `jaxalign --help`."""
    width = max(map(len, commands))
    lines = ["jaxalign: a language model the whole way in JAX, measured at every step", "", "Commands"]
    lines += [f"  {name:<{width}}  {command.summary}" for name, command in commands.items()]
    lines += ["", "Examples"]
    lines += [f"  {command.examples[0]}" for command in commands.values()]
    lines += ["", "jaxalign COMMAND --help tells the flags of one command; jaxalign --version the version."]
    return "\n".join(lines)


def help_of(command: Command) -> str:
    """The text of `jaxalign COMMAND --help`."""
    usage = f"jaxalign {command.name}"
    listed = list(command.flags)
    if command.takes_config:
        usage += " --config=FILE"
        listed.insert(0, Flag("config", "file", None, CONFIG_HELP, required=True))
    usage += "".join(f" --{f.name}={f.kind.upper()}" for f in command.flags if f.required)
    usage += f" [{command.positional}]" if command.positional else ""
    usage += " [--config.key=VALUE ...]" if command.takes_config else " [flags]"
    lines = [command.summary, "", "Usage", f"  {usage}", "", "Flags"]
    for flag in (*listed, DEBUG):
        default = "" if flag.default in (None, "", False, []) else f" (default {flag.default})"
        text = ("required: " if flag.required else "") + flag.help + default
        kind = "" if flag.kind == "bool" else f"={flag.kind.upper()}"
        head = f"  --{flag.name}{kind}"
        body = textwrap.wrap(text, 88)
        lines += [f"{head:<26}{body[0]}" if len(head) < 25 else f"{head}\n{'':26}{body[0]}"]
        lines += [f"{'':26}{line}" for line in body[1:]]
    return "\n".join([*lines, "", "Examples", *(f"  {example}" for example in command.examples)])


def nearest(name, names):
    return next(iter(difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)), None)


def _take_config(command, argv):
    """The value of --config=FILE or --config FILE, and the arguments without it."""
    path, rest, arguments = None, [], iter(argv)
    for argument in arguments:
        match = re.fullmatch(r"--?config(?:=(.*))?", argument, re.DOTALL)
        if not match:
            rest.append(argument)
            continue
        path = match[1] if match[1] is not None else next(arguments, None)
    if not path:
        for argument in rest:
            name = argument.lstrip("-").partition("=")[0]
            if argument.startswith("-") and nearest(name, ["config"]):
                raise ConfigError(_unknown(command, name))
        raise ConfigError(f"jaxalign {command.name} needs --config=FILE, {CONFIG_HELP}; e.g. {command.examples[0]}")
    return path, rest


def _add_import_paths(path):
    """Lets a config name functions ("my_module:my_loss") that stand beside it or in the current folder."""
    import os
    import sys

    # At the end: a file called like an installed module must not hide it.
    for folder in (os.getcwd(), os.path.dirname(os.path.abspath(path.partition(":")[0]))):
        if folder not in sys.path:
            sys.path.append(folder)


def _underscored(argument):
    """--max-new-tokens is --max_new_tokens; keys of a config are left as they are."""
    if argument == "--" or not argument.startswith("--") or re.match(r"--(no)?config\.", argument):
        return argument
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _unknown(command, name):
    names = [flag.name for flag in (*command.flags, DEBUG)] + (["config"] if command.takes_config else [])
    if name.startswith("config.") and not command.takes_config:
        return f"jaxalign {command.name} takes no config, got --{name}"
    near = nearest(name, names)
    cure = f"did you mean --{near}?" if near else f"it has: {', '.join('--' + n for n in names)}"
    return f"jaxalign {command.name} has no flag --{name}; {cure}"


def _readable(message, values):
    """absl's 'flag --seed=x: invalid literal for int() …' as what was expected and what came."""
    match = re.match(r"flag --(.+?)=(.*?): ", message, re.DOTALL)
    if not match or match[1] not in values:
        return message
    kind = values[match[1]].flag_type().removeprefix("config_").removeprefix("multi ")
    value = "nothing" if match[2] == "" else repr(match[2])
    return f"--{match[1]}: expected {kind}, got {value}"
