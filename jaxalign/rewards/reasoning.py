"""The scorers of reasoning-gym's tasks, and how an entry of theirs is carried in a row of a file."""

import functools
import json

from jaxalign.errors import ConfigError, get_extra
from jaxalign.rewards.rules import final_answer

TUPLE, PAIRS = "__tuple__", "__pairs__"


def pack(entry_metadata):
    """Metadata as JSON text that `unpack` turns into an equal value: tuples and keys that are no strings stay so.

    Scorers compare with what they stored, and a list is not equal to a tuple.
    """
    return json.dumps(_encode(entry_metadata), ensure_ascii=False)


def unpack(text):
    """What `pack` was given."""
    return _decode(json.loads(text))


def create(task, **options):
    """A dataset of reasoning-gym. Raises ConfigError where the extra is not installed or the task cannot be made."""
    try:
        import reasoning_gym  # here, as nothing else needs the extra
    except ImportError as error:
        raise ConfigError(f"reasoning: needs the package reasoning-gym; {get_extra('reasoning')}") from error
    try:
        return reasoning_gym.create_dataset(task, **options)
    except (ValueError, TypeError, AssertionError) as error:
        raise ConfigError(f"reasoning: reasoning-gym cannot make task={task!r} with {options}: {error}") from error


class ReasoningScore:
    """The score of reasoning-gym's own verifier for the row's task: 1 where it is satisfied.

    Many scorers give something for a wrong answer (a share for holding the right one, 0.01 for trying). That teaches to
    please the scorer, so by default a score counts as right only at 1.0, and everything below it is 0.

    Args:
      credit: "full" (1 or 0) or "partial" (the score as it is).
    Judges rows as the stage `reasoning` writes them, with the task's name as "kind", its "options" and "metadata". A
    response that marks its final answer is judged by that part, any other as a whole.
    """

    def __init__(self, *, credit="full"):
        if credit not in ("full", "partial"):
            raise ConfigError(f"reasoning_gym: credit={credit!r}; expected 'full' or 'partial'")
        self.full = credit == "full"
        create("chain_sum")  # so that a missing extra shows now

    def __call__(self, response, row):
        if not isinstance(row.get("metadata"), str) or "kind" not in row:
            raise ValueError("the row has no \"kind\" and \"metadata\" of reasoning-gym; write the file with the stage "
                             "`reasoning`, and leave other rows out with config.reward_kinds")
        entry = {"question": row["prompt"], "answer": row["answer"], "metadata": unpack(row["metadata"])}
        said = final_answer(response)
        scorer = _dataset(row["kind"], json.dumps(row.get("options") or {}, sort_keys=True))
        score = float(scorer.score_answer(response.strip() if said is None else said, entry))
        return float(score >= 1.0) if self.full else score


@functools.lru_cache(maxsize=256)
def _dataset(task, options):
    return create(task, **json.loads(options))


def _encode(value):
    if isinstance(value, tuple):
        return {TUPLE: [_encode(item) for item in value]}
    if isinstance(value, list):
        return [_encode(item) for item in value]
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value) and not {TUPLE, PAIRS} & set(value):
            return {key: _encode(item) for key, item in value.items()}
        return {PAIRS: [[_encode(key), _encode(item)] for key, item in value.items()]}
    return value


def _decode(value):
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {TUPLE}:
        return tuple(_decode(item) for item in value[TUPLE])
    if set(value) == {PAIRS}:
        return {_decode(key): _decode(item) for key, item in value[PAIRS]}
    return {key: _decode(item) for key, item in value.items()}
