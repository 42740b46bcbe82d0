"""Configs: plain Python files with `get_config()`, overridden by flags, checked once, kept as JSON.

A config is an `ml_collections.ConfigDict`. Paths into it are written as on the command line, without the
leading `config.`: `optimizer.peak_lr`, `data.train[0].path`.
"""

import difflib
import json
import pathlib
import re
import traceback
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict, FieldReference, config_dict, config_flags
from ml_collections.config_flags import config_path

from jaxalign.errors import ConfigError, JaxalignError

GROUPS = (ConfigDict, Mapping)  # ConfigDict is no Mapping to isinstance


def load(path, overrides: Mapping | None = None) -> ConfigDict:
    """The locked config that `get_config()` of a Python file returns.

    Args:
      path: the file; `file.py:text` calls `get_config("text")`.
      overrides: {"optimizer.peak_lr": 1e-4, "data.train[0].path": "x.jsonl"}, set after loading.

    Raises:
      ConfigError: no such file, no `get_config`, an error inside it (with its line), an unknown key, a wrong type.
    """
    file, _, argument = str(path).partition(":")
    file = pathlib.Path(file)
    if not file.is_file():
        near = _nearest(file.name, [p.name for p in file.parent.glob("*.py")] if file.parent.is_dir() else [])
        raise ConfigError(f"config file {file} not found" + (f"; did you mean {file.parent / near}?" if near else ""))
    namespace = {"__name__": "jaxalign_config", "__file__": str(file)}
    try:
        exec(compile(file.read_bytes(), str(file), "exec"), namespace)
        if not callable(namespace.get("get_config")):
            raise ConfigError(f"{file}: expected a function get_config() that returns a ConfigDict, found none")
        config = namespace["get_config"](*([argument] if argument else []))
    except JaxalignError:
        raise
    except Exception as error:
        raise ConfigError(f"{_where(file, error)}: {type(error).__name__}: {_message(error)}") from error
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"{file}: get_config() must return an ml_collections ConfigDict, got {_type_name(config)}")
    config.lock()
    for key, value in (overrides or {}).items():
        _set(config, key, value)
    return config


def define_overrides(config: ConfigDict, flag_values, argv: Sequence[str]) -> None:
    """Adds a flag to `flag_values` for every `--config.key=VALUE` in `argv`; parsing them sets `config` in place.

    Unknown keys are refused here, before anything is parsed, with the nearest right name. Options belong to their
    objective: naming another one (`--config.objective.name=my_module:my_loss`) drops those of the one before, and
    takes whichever are given with it; its signature checks them when the stage binds it.

    Raises:
      ConfigError: a key that the config does not have, or one whose type cannot be given on a command line.
    """
    # ml_collections knows neither lists nor fields that are None; both are read as Python literals.
    config_flags.register_flag_parser_for_type(list, _ListParser())
    config_flags.register_flag_parser_for_type(type(None), config_flags.config_flags._LiteralParser())
    objective = config.get("objective", ConfigDict())
    names = [m[1] for m in (re.match(r"--?config\.objective\.name=(.*)", argument) for argument in argv) if m]
    other = bool(names) and names[-1] != objective.get("name")
    if other:
        with objective.unlocked():
            for option in [key for key in objective if key != "name"]:
                del objective[option]
    free = other or ":" in str(objective.get("name", ""))
    for argument in argv:
        match = re.match(r"--?(?:no)?config\.([^=]+)", argument)
        if not match:
            continue
        path = match[1]
        option = re.fullmatch(r"objective\.(\w+)", path)
        if free and option and option[1] not in objective:
            with objective.unlocked():
                objective[option[1]] = None
        holder, key = _find(config, path)
        if isinstance(holder[key], GROUPS):
            keys = ", ".join(f"{path}.{name}" for name in holder[key])
            raise ConfigError(f"config key {path} is a group of keys; set one of them: {keys}")
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=flag_values, sys_argv=list(argv))
    except Exception as error:
        raise ConfigError(_message(error)) from error


class _ListParser(config_flags.config_flags._LiteralParser):
    """A list, or a tuple, as a Python literal; anything else is refused where the flag's name is still known."""

    def parse(self, value):
        found = super().parse(value)
        if not isinstance(found, (list, tuple)):
            raise ValueError(f"expected a list, got {value!r}")
        return list(found)

    def flag_type(self):
        return "list"


def check(config: Mapping, defaults: Mapping, free: Sequence[str] = ("objective",), at: str = "") -> None:
    """Checks that every key of `config` exists in `defaults` and has its type.

    An int serves as a float and a tuple as a list (or the reverse); a default of None admits anything, and so do
    the insides of lists. Keys below a path in `free` may be new (an objective's options are its own signature's
    business), but those that the default has must keep its type. Missing keys are no error: use `complete`.

    Raises:
      ConfigError: names the key with its nearest right name, or the type expected and the value that came.
    """
    for key in config:
        value, path = config[key], f"{at}.{key}" if at else str(key)
        if key not in defaults:
            if at in free and at:
                continue
            raise ConfigError(_unknown(path, key, at, defaults))
        expected = defaults.get_type(key) if isinstance(defaults, ConfigDict) else type(defaults[key])
        if isinstance(defaults[key], GROUPS):
            if not isinstance(value, GROUPS):
                raise ConfigError(_wrong_type(path, ConfigDict, value))
            check(value, defaults[key], free, path)
        elif not (expected is type(None) or value is None is defaults[key] or _fits(value, expected)):
            raise ConfigError(_wrong_type(path, expected, value))


def check_least(config: Mapping, least: Mapping) -> None:
    """Raises ConfigError for a number below the least it may be; NaN is below all.

    Keys that the config lacks, or that hold no number in it, are no matter.

    Args:
      config: anything with groups.
      least: {"optimizer.warmup_steps": 0, "batch_size": 1, …}.
    """
    for path, bound in least.items():
        value = config
        for key in path.split("."):
            value = value.get(key) if isinstance(value, GROUPS) else None
        if isinstance(value, (int, float)) and not value >= bound:
            raise ConfigError(f"config key {path}={value}: expected {bound} or more")


def differences(old: Mapping, new: Mapping, at: str = ""):
    """Yields a line for every key that is new, gone or has another value: "optimizer.peak_lr: 0.001 → 0.0003"."""
    for key in [*old, *(k for k in new if k not in old)]:
        here = f"{at}{key}"
        if key not in old or key not in new:
            yield f"{here} is {'new' if key not in old else 'gone'}"
        elif isinstance(old[key], GROUPS) and isinstance(new[key], GROUPS):
            yield from differences(old[key], new[key], f"{here}.")
        elif old[key] != new[key]:
            yield f"{here}: {old[key]!r} → {new[key]!r}"


def to_json(config: Mapping) -> str:
    """A config as JSON that `from_json` turns back into an equal one: tuples stay tuples, typed Nones keep their type.

    Raises:
      ConfigError: a value that is no bool, int, float, str, None, list, tuple or mapping of these, with its path.
    """
    return json.dumps(_encode(config, ""), indent=2, ensure_ascii=False)


def from_json(text: str) -> ConfigDict:
    """The locked config that `to_json` wrote."""
    return ConfigDict(_decode(json.loads(text)), sort_keys=False).lock()


def _find(config, path: str):
    """(holder, last part) of a path into nested configs, lists and dicts."""
    try:
        *parents, last = config_path.split(path)
    except ValueError:
        raise ConfigError(f"--config.{path}: not a key; write it as a.b or a.list[0].b") from None
    holder, at = config, ""
    for part in [*parents, last]:
        if isinstance(part, int) and isinstance(holder, (list, tuple)):
            if not -len(holder) <= part < len(holder):
                raise ConfigError(f"{at}[{part}]: the list {at} has {len(holder)} entries, counted from 0")
        elif not isinstance(holder, GROUPS):
            raise ConfigError(f"{path}: {at or 'the config'} is {_show(holder)}, it has no key {part!r}")
        elif part not in holder:
            raise ConfigError(_unknown(f"{at}.{part}" if at else str(part), part, at, holder, config))
        parent, holder = holder, holder[part]
        at = f"{at}[{part}]" if isinstance(part, int) else f"{at}.{part}" if at else part
    return parent, last


def _set(config, path, value):
    holder, key = _find(config, path)
    old = holder[key]
    kind = holder.get_type(key) if isinstance(holder, ConfigDict) else type(old)
    if old is not None and not (_fits(value, kind) or isinstance(old, GROUPS) and isinstance(value, GROUPS)):
        raise ConfigError(_wrong_type(path, kind, value))
    try:
        holder[key] = value
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path}: {_message(error)}") from error


def _fits(value, expected) -> bool:
    # bool is an int to Python; `steps=True` is a mistake all the same.
    if isinstance(value, bool) or expected is bool:
        return isinstance(value, bool) and expected is bool
    if expected is float:
        return isinstance(value, (int, float))
    if expected in (list, tuple):
        return isinstance(value, (list, tuple))
    return isinstance(value, expected)


def _unknown(path, key, at, siblings, whole=None):
    """The message for a key that is not there: the nearest sibling, else the same name elsewhere in the config, there
    where it is least deep."""
    near = _nearest(str(key), [str(name) for name in siblings])
    if near:
        near = f"{at}.{near}" if at else near
    else:
        names = {path: path.rsplit(".", 1)[-1] for path in _paths(siblings if whole is None else whole)}
        name = _nearest(str(key), list(names.values()), cutoff=0.8)
        same = [path for path, last in names.items() if last == name]
        near = min(same, key=lambda path: path.count("."), default=None)
    cure = f"did you mean {near}?" if near else f"{at or 'the config'} has: {', '.join(map(str, siblings))}"
    return f"config key {path} does not exist; {cure}"


def _paths(config, at=""):
    for key in config:
        path = f"{at}.{key}" if at else str(key)
        yield path
        if isinstance(config[key], GROUPS):
            yield from _paths(config[key], path)


def _nearest(name, names, cutoff=0.6):
    return next(iter(difflib.get_close_matches(name, names, n=1, cutoff=cutoff)), None)


def _wrong_type(path, expected, value):
    return f"config key {path}: expected {expected.__name__}, got {_show(value)}"


def _type_name(value):
    return type(value).__name__


def _show(value):
    return f"{_type_name(value)} {value!r}" if not isinstance(value, GROUPS) else "a group of keys"


def _where(file, error):
    """The file with the line inside it that failed."""
    if isinstance(error, SyntaxError) and error.lineno:
        return f"{file}:{error.lineno}"
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
    return f"{file}:{lines[-1]}" if lines else str(file)


def _message(error):
    # KeyError shows its text in quotes, and ml_collections adds the whole list of fields on lines of their own.
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    text = (str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)).strip()
    hint = re.search(r"Did you mean.*", text)
    first = (text.splitlines() or [type(error).__name__])[0].split(" Other fields present")[0]
    return f"{first} {hint[0]}" if hint and hint[0] not in first else first


def _encode(value, path):
    if isinstance(value, ConfigDict) and path.endswith("]"):
        return {"__config__": _encode(value.to_dict(), path[:-1])}
    if isinstance(value, GROUPS):
        fields = value.items(preserve_field_references=True) if isinstance(value, ConfigDict) else value.items()
        return {str(key): _encode(item, f"{path}.{key}".lstrip(".")) for key, item in fields}
    if isinstance(value, FieldReference):
        if value.get() is None and value.get_type() is not type(None):
            return {"__none_of__": value.get_type().__name__}
        return _encode(value.get(), path)
    if isinstance(value, tuple):
        return {"__tuple__": [_encode(item, f"{path}[{i}]") for i, item in enumerate(value)]}
    if isinstance(value, list):
        return [_encode(item, f"{path}[{i}]") for i, item in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ConfigError(
        f"config key {path}: {_type_name(value)} cannot be kept in a checkpoint; "
        "use bool, int, float, str, None, or lists and tuples of these"
    )


_PLACEHOLDERS = {kind.__name__: kind for kind in (bool, int, float, str, list, tuple)}


def _decode(value):
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"__config__"}:
        return ConfigDict(_decode(value["__config__"]), sort_keys=False)
    if set(value) == {"__tuple__"}:
        return tuple(_decode(item) for item in value["__tuple__"])
    if set(value) == {"__none_of__"}:
        return config_dict.placeholder(_PLACEHOLDERS[value["__none_of__"]])
    return {key: _decode(item) for key, item in value.items()}
