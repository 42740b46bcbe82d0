"""The names by which functions named in a config ask for what a stage has, and how they get it.

An objective (or any function a config names) draws its positional arguments from `VOCABULARY`; its keyword-only
arguments are options, given in the config. No adapter, no registration: a name the stage cannot give is an error that
lists those it can.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from typing import Any, Callable, Mapping

from jaxalign.errors import ConfigError

BRANCH = 1 << 16  # added to the segment ids of a row's answers, once for each, where several share what stands before them

VOCABULARY: dict[str, str] = {
    # A row of tokens. Position t reads tokens[t] and is scored on targets[t], the next token of the same document.
    "tokens_BT": "input token ids, int32",
    "targets_BT": "the next token of the same document, int32",
    "mask_BT": "1 where the target counts, else 0, float32; the end-of-turn token counts, padding never does",
    "positions_BT": "position within the document, from 0, int32",
    "segment_ids_BT": "document within the row, from 1; 0 is padding, int32",
    # The trained policy's view of the targets. Gradient flows.
    "logp_BT": "log-probability of the target under the trained policy, nats; gradient flows",
    "logz_BT": "log-normaliser of the trained policy's logits, nats; gradient flows",
    "mean_logp_BT": "log-probability averaged over the vocabulary (for label smoothing), nats; gradient flows",
    "entropy_BT": "entropy of the trained policy's distribution, nats; gradient flows",
    "top_BT": "1 where the trained policy gives no token more than the target, else 0, float32; no gradient",
    # Other policies' view of the same targets. No gradient.
    "old_logp_BT": "log-probability under the policy that this batch began with, same temperature as logp_BT, nats",
    "ref_logp_BT": "log-probability under the frozen reference policy, nats",
    "sampler_logp_BT": "log-probability of the distribution that drew the token, as the sampler reported it, nats",
    # Reinforcement learning.
    "value_BT": "value predicted before the target is drawn, reward units; gradient flows",
    "old_value_BT": "value_BT as it was when this batch began",
    "advantage_BT": "advantage of the target over the policy's average, reward units or whitened",
    "returns_BT": "what value_BT should have been, reward units",
    "reward_B": "reward of the whole response",
    "budget_B": "the most tokens that the response could have had, float32",
    # R ranked answers to one prompt.
    "score_BR": "reward model's score of each answer; gradient flows",
    "ranks_BR": "rank of each answer, 0 the best, equal ranks are a tie, int32",
    "answer_mask_BR": "1 where there is an answer, else 0, float32",
    # Pairs.
    "chosen_score_B": "reward model's score of the preferred answer; gradient flows",
    "rejected_score_B": "reward model's score of the other answer; gradient flows",
    "margin_B": "how much better the preferred answer is (difference of ranks or of given scores), 0 if unknown",
    "chosen_logp_B": "log-probability of the preferred answer, summed over its tokens, nats; gradient flows",
    "rejected_logp_B": "log-probability of the other answer, summed over its tokens, nats; gradient flows",
    "chosen_ref_B": "chosen_logp_B under the frozen reference policy",
    "rejected_ref_B": "rejected_logp_B under the frozen reference policy",
    "chosen_length_B": "tokens in the preferred answer, float32",
    "rejected_length_B": "tokens in the other answer, float32",
    # Single answers, each liked or not.
    "logp_B": "log-probability of the answer, summed over its tokens, nats; gradient flows",
    "ref_logp_B": "logp_B under the frozen reference policy",
    "desirable_B": "1 where the answer was liked, 0 where it was not, float32",
    "reference_point_B": "KTO's z₀ of the batch, nats, the same in every row",
    "weight_B": "1 where the row counts, else 0, float32",
}

# What a reward judges (jaxalign/rewards/run.py): one row, or all rows of a rollout in one call.
ROW_VOCABULARY: dict[str, str] = {
    "prompt": "text of the last user turn",
    "response": "text that the policy drew",
    "answer": "what a verifier looks for, text; rows without one are passed over",
    "messages": "the whole conversation before the response, list of {'role', 'content'}",
    "row": "the record as it stands in its file, a dict, with `prompt`, `answer` and `messages`",
    "prompts": "`prompt` of every row, list",
    "responses": "`response` of every row, list",
    "answers": "`answer` of every row, list",
    "conversations": "`messages` of every row, list",
    "rows": "`row` of every row, list",
    "load_reward_model": "checkpoint → an object with score_responses(conversations, responses); to classes",
}


def signature(function: Callable) -> tuple[dict[str, bool], dict[str, bool]]:
    """What `function` asks for.

    Returns:
      `(arguments, options)`: positional and keyword-only parameters by name; True where one is required.

    Raises:
      ConfigError: `function` takes *args or **kwargs, so what it needs cannot be read from its signature.
    """
    arguments, options = {}, {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ConfigError(f"{_name(function)}: every argument needs a name of its own; got {parameter}")
        required = parameter.default is parameter.empty
        (options if parameter.kind is parameter.KEYWORD_ONLY else arguments)[name] = required
    return arguments, options


def check(function: Callable, available, options) -> None:
    """Raises the `ConfigError` that `bind` would, without calling anything: for the start of a stage.

    Args:
      function: an objective, or any function named in a config.
      available: the names the stage can give.
      options: the names of the options the config gives.
    """
    arguments, _ = signature(function)
    lacking = [name for name, required in arguments.items() if required and name not in available]
    if lacking:
        raise ConfigError(
            f"{_name(function)} asks for {', '.join(map(_explain, lacking))}, which this stage cannot give"
            f"{_nearest(lacking[0], available)}; it can give: {', '.join(sorted(available)) or 'nothing'}. "
            "Options belong after a `*` in the function's signature."
        )
    check_options(function, options)


def check_options(function: Callable, options) -> None:
    """Raises the `ConfigError` for an option that `function` does not have, or for one that it needs and is not given."""
    _, accepted = signature(function)
    for name in options:
        if name not in accepted:
            raise ConfigError(
                f"{_name(function)} has no option {name!r}{_nearest(name, accepted)}; "
                f"it has: {', '.join(sorted(accepted)) or 'none'}"
            )
    missing = [name for name, required in accepted.items() if required and name not in options]
    if missing:
        also = [name for name in missing if name in VOCABULARY]
        raise ConfigError(
            f"{_name(function)} needs the option{'s' * (len(missing) > 1)} {', '.join(missing)}; set it in the config"
            + (f" (for {also[0]} from the batch, put it before the `*` in the signature)" if also else "")
        )


def bind(function: Callable, available: Mapping[str, Any], options: Mapping[str, Any]):
    """Calls `function` with the arguments it names and the options the config gives, and returns its result.

    Args:
      function: its positional parameters are looked up in `available` by name, those with a default only if there; its
        keyword-only parameters are looked up in `options`.
      available: name → value, or a callable without arguments that makes the value, called only if asked for.
      options: name → value. Every one must be accepted.

    Raises:
      ConfigError: a name the stage cannot give, an unknown option, or a required option not set.
    """
    check(function, available, options)
    arguments, _ = signature(function)
    given = {name: available[name] for name in arguments if name in available}
    values = {name: value() if callable(value) else value for name, value in given.items()}
    return function(**values, **options)


def resolve(name: str, table: Mapping[str, Callable]) -> Callable:
    """The function a config names.

    Args:
      name: a key of `table`, or "module:function" to be imported from the Python path.
      table: name → function, a literal dict such as `OBJECTIVES`.

    Raises:
      ConfigError: no such key, module or function.
    """
    if name in table:
        return table[name]
    module_name, colon, attribute = name.partition(":")
    if not (colon and module_name):
        raise ConfigError(
            f"no function {name!r}{_nearest(name, table)}; expected one of {', '.join(sorted(table))}, "
            'or "module:function" for your own'
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A module that exists but imports a missing one must show its own traceback.
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise
        raise ConfigError(
            f"{name!r}: no module {module_name!r} on the Python path; run from the folder that holds it, "
            "or add that folder to PYTHONPATH"
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ConfigError(
            f"{name!r}: module {module_name!r} has no function {attribute!r}{_nearest(attribute, public)}; "
            f"it has: {', '.join(sorted(public)) or 'none'}"
        )
    return function


def _name(function) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _explain(name) -> str:
    meanings = VOCABULARY | ROW_VOCABULARY
    return f"{name} ({meanings.get(name, 'not a name of the vocabulary')})"


def _nearest(name, names) -> str:
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}" if near else ""
