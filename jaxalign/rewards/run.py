"""Rewards as a stage runs them: named in its config, bound by signature, every call bounded, every failure counted.

    config.rewards = [dict(name="numeric", weight=1.0),
                      dict(name="format", weight=0.2, pattern=r"<think>.*</think>.*"),
                      dict(name="my_rewards:politeness", weight=0.1, timeout=30.0, words=["please"])]
"""

import collections
import contextlib
import dataclasses
import difflib
import math
import threading
from typing import Callable

import numpy as np

from jaxalign.batches import check, resolve, signature
from jaxalign.errors import ConfigError
from jaxalign.rewards.deadline import Deadline, TimedOut

# What a reward may ask for: of its row, or under the other name of all rows at once.
ROW = {"prompt": "prompts", "response": "responses", "answer": "answers", "messages": "conversations", "row": "rows"}
# What an entry of `config.rewards` holds beside the reward's own options.
SETTINGS = {
    "name": "",  # a key of `REWARDS`, or "module:function"
    "label": "",  # what its figures are called; "" is its name
    "weight": 1.0,
    "timeout": 0.0,  # seconds a row; 0 is TIMEOUT; a reward of all rows at once has that many times their number
    "failed": 0.0,  # stands for the value of a row on which it raises, hangs, or returns no finite number
}
TIMEOUT = 10.0  # of a reward that has no `timeout` of its own as an attribute
SLOW = 60.0  # seconds of one reward on one rollout after which it is said that the run waits for it
SHOWN = 200  # characters of an error's text
LARGEST = float(np.finfo(np.float32).max) / 1024  # of a weighted value, so that no sum of them is infinite


@dataclasses.dataclass
class Part:
    """One summand of the reward."""

    label: str
    weight: float
    timeout: float
    failed: float
    function: Callable
    arguments: list[str]
    batched: bool
    needs_answer: bool
    spared: bool = True  # whether some row of the rollout before did not fail
    told: set = dataclasses.field(default_factory=set)  # kinds of failure that were warned of


class Rewards:
    """The weighted sum of the rewards that a config names.

        R = Σ_k weight_k · r_k(prompt, response, answer)

    A reward is a function that returns a number. It asks for what it needs by name: `prompt` (text of the last user
    turn), `response`, `answer`, `messages` (the whole conversation), `row` (the record from the file); or, to judge all
    rows in one call, for `prompts`, `responses`, `answers`, `conversations`, `rows`, and then returns as many numbers,
    None for a row that it could not judge. Keyword-only arguments are options from the config. A reward with something
    to prepare is a class: options go to `__init__`, together with what the stage gives by name, and `__call__` judges.

    A reward that asks for an answer passes over rows that have none; they get 0 from it. A reward that raises
    (SystemExit too), takes longer than its timeout, or returns no finite number costs its own value of that row and
    nothing else: the value is the entry's `failed`, and the row is counted. Only a `ConfigError` passes through.

    Args:
      entries: mappings with the `SETTINGS` and a reward's options.
      table: name → reward, a literal dict such as `REWARDS`.
      given: name → what the stage gives to those that are classes, such as a loader of checkpoints.
    Raises:
      ConfigError: nothing named, an unknown reward, an option that it does not have or that is missing.
    """

    def __init__(self, entries, table, given=None):
        self._unbounded = False  # whether it was said that nothing ends a call
        check_rewards(entries, table, given or {})
        self.parts = [_part(number, entry, table, given or {}) for number, entry in enumerate(entries)]

    @property
    def needs_answer(self):
        """Whether a row without an answer earns nothing from any of them."""
        return all(part.needs_answer for part in self.parts)

    def __call__(self, rows, responses, counts, warn):
        """Judges a rollout.

        Args:
          rows: mappings with "prompt", "answer" (None if there is none) and, if a reward asks for it, "messages".
          responses: their texts.
          counts: (N,) bool, which rows are rewarded at all; the others get 0.
          warn: called with a line about what fails; each kind of failure once, failure of all rows whenever it sets in.
        Returns:
          (R float32 (N,), figures): `reward/LABEL`, the mean over the rows that were judged, those that failed with
          what stands for them; `reward/LABEL/failed`, how many failed.
        """
        total, figures = np.zeros(len(rows), np.float32), {}
        answered = np.array([row["answer"] is not None for row in rows], bool)
        with Deadline() as deadline:
            if not deadline.works and not self._unbounded:
                self._unbounded = True
                warn("no alarm signal here (not the main thread, or none on this system): a reward that hangs "
                     "stops the run")
            for part in self.parts:
                used = np.flatnonzero(counts & answered if part.needs_answer else counts)
                with _told_when_slow(part, len(used), warn):
                    values, failures = _judge(part, rows, responses, used, deadline)
                total[used] += np.float32(part.weight) * values
                figures[f"reward/{part.label}"] = float(values.mean()) if len(used) else 0.0
                figures[f"reward/{part.label}/failed"] = float(len(failures))
                _tell(part, failures, len(used), warn)
        return total, figures


def check_rewards(entries, table, given):
    """Raises the ConfigError that `Rewards` would; what loads a model or is the user's own class is not made for it."""
    if not entries:
        raise ConfigError(f"config.rewards is empty; give at least one of {', '.join(sorted(table))}, such as "
                          '[dict(name="numeric", weight=1.0)]')
    labels = []
    for number, entry in enumerate(entries):
        name, function, _, settings = _named(number, entry, table, given)
        labels.append(settings["label"])
        if not isinstance(function, type) or name in table and not signature(function)[0]:
            _part(number, entry, table, given)
    for label, count in collections.Counter(labels).items():
        if count > 1:
            raise ConfigError(f"config.rewards names {label!r} {count} times; give each its own label=\"…\", under "
                              "which its figures are logged")


def _named(number, entry, table, given):
    """(name, function or class, its options, the entry's settings) of one entry."""
    where, entry = f"config.rewards[{number}]", dict(entry)
    settings = SETTINGS | {key: entry.pop(key) for key in SETTINGS if key in entry}
    for key, default in SETTINGS.items():
        kinds = str if isinstance(default, str) else (int, float)
        if not isinstance(settings[key], kinds) or isinstance(settings[key], bool):
            raise ConfigError(f"{where}.{key}: expected {type(default).__name__}, got {settings[key]!r}")
    if not settings["name"]:
        raise ConfigError(f"{where} has no name; give one of {', '.join(sorted(table))}, or \"module:function\"")
    if not settings["timeout"] >= 0 or not all(
            abs(value) <= LARGEST for value in (settings["weight"], settings["failed"] * settings["weight"])):
        raise ConfigError(f"{where}: timeout={settings['timeout']} must not be below 0, failed={settings['failed']} "
                          f"and weight={settings['weight']} finite")
    name, options = settings.pop("name"), entry
    function, settings["label"] = resolve(name, table), settings["label"] or name
    accepted = signature(function)[1]
    for key in set(accepted) & set(SETTINGS):
        raise ConfigError(f"{where}: {name} has an option {key!r}, which every entry has; rename it")
    for key in set(options) - set(accepted):
        for near in difflib.get_close_matches(key, SETTINGS, n=1):
            raise ConfigError(f"{where} has no key {key!r}; did you mean {near!r}")
    if isinstance(function, type):
        check(function, given, options)
    return name, function, options, settings


def _part(number, entry, table, given):
    name, function, options, settings = _named(number, entry, table, given)
    where = f"config.rewards[{number}]"
    if isinstance(function, type):
        wanted = signature(function)[0]
        function, options = function(**{name: given[name] for name in wanted if name in given}, **options), {}
    asked = list(signature(function)[0])
    batched = any(name in ROW.values() for name in asked)
    if batched and any(name in ROW for name in asked):
        raise ConfigError(f"{where}: a reward is of one row ({', '.join(ROW)}) or of all ({', '.join(ROW.values())}), "
                          f"not both; this one asks for {', '.join(asked)}")
    available = list(ROW.values()) if batched else list(ROW)
    check(function, available, options)
    asked = [name for name in asked if name in available]
    settings["timeout"] = settings["timeout"] or getattr(function, "timeout", TIMEOUT)
    return Part(function=_with(function, options), arguments=asked, batched=batched,
                needs_answer=signature(function)[0].get("answers" if batched else "answer", False), **settings)


def _with(function, options):
    return (lambda **arguments: function(**arguments, **options)) if options else function


@contextlib.contextmanager
def _told_when_slow(part, count, warn):
    """Says after `SLOW` seconds what the run is waiting for, and how long it may be."""
    timer = threading.Timer(SLOW, warn, [f"reward {part.label!r} has taken {SLOW:g} s on a rollout of {count} rows; its timeout of "
                                         f"{part.timeout:g} s a row lets it take {part.timeout * count:g} s"])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _judge(part, rows, responses, used, deadline):
    """(value of each used row, {position among them: (kind, text) of its failure})."""
    def of_row(n):
        row = rows[n]
        return {"prompt": row["prompt"], "response": responses[n], "answer": row["answer"], "row": row,
                "messages": row.get("messages")}

    if not part.batched:
        results = [_call(part, deadline, part.timeout, {name: row[name] for name in part.arguments})
                   for row in map(of_row, used)]
    elif len(used):
        columns = [of_row(n) for n in used]
        given = {plural: [row[name] for row in columns] for name, plural in ROW.items() if plural in part.arguments}
        results = _call(part, deadline, part.timeout * len(used), given)
        if not isinstance(results, _Failure) and len(results) != len(used):
            results = _Failure("shape", f"returned {len(results)} values for {len(used)} rows")
        if isinstance(results, _Failure):
            results = [results] * len(used)
    else:
        results = []
    values, failures = np.full(len(used), part.failed, np.float32), {}
    for k, result in enumerate(results):
        number = result if isinstance(result, _Failure) else _number(result, part.weight)
        if isinstance(number, _Failure):
            failures[k] = number
        else:
            values[k] = number
    return values, failures


class _Failure(collections.namedtuple("_Failure", "kind text")):
    pass


def _call(part, deadline, seconds, arguments):
    try:
        return deadline.call(seconds, _all_of(part.function) if part.batched else part.function, **arguments)
    except TimedOut:
        return _Failure("timeout", f"no result within {seconds:g} s")
    except ConfigError:  # is wrong for all rows, and the user's to mend
        raise
    except (Exception, SystemExit) as error:
        return _Failure(type(error).__name__, f"{type(error).__name__}: {error}")


def _all_of(function):
    """The function with its result as a list: what a generator does is within the deadline, its failures counted."""
    def call(**arguments):
        results = function(**arguments)
        try:
            results = iter(results)
        except TypeError:
            raise ValueError(f"returned {type(results).__name__}, expected a number for each row") from None
        return list(results)

    return call


def _number(result, weight):
    try:
        number = float(result)
    except OverflowError:  # an integer beyond every float
        number = math.inf
    except Exception:  # of whatever kind: some libraries' arrays have errors of their own
        return _Failure("no number", f"returned {_text(result)!r}, expected a number")
    if abs(number) <= LARGEST and abs(number * weight) <= LARGEST:
        return number
    return _Failure("not finite", f"returned {number}, expected one that is finite, and so times weight={weight:g}")


def _text(result):
    try:
        return str(result)[:40]
    except Exception:
        return type(result).__name__


def _tell(part, failures, count, warn):
    kinds = collections.Counter(failure.kind for failure in failures.values())
    for failure in failures.values():
        if failure.kind not in part.told:
            part.told.add(failure.kind)
            warn(f"reward {part.label!r} failed on {kinds[failure.kind]} of {count} rows, which count as "
                 f"{part.failed:g}: {failure.text[:SHOWN]}; from here on see reward/{part.label}/failed")
    spared = len(failures) < count or not count
    if not spared and part.spared:
        warn(f"reward {part.label!r} failed on all {count} rows, so it teaches nothing; mend it, or raise its timeout")
    part.spared = spared
