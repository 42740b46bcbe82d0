"""Figures of a checkpoint on data: what makes sense follows from the kind of row that a source's shape gives."""

from jaxalign.data.intake import Intake, as_chat, as_prompt, check_sources, read_rows
from jaxalign.data.rows import Chat, Prompt, Ranking, Text, Unpaired
from jaxalign.data.shapes import SHAPES
from jaxalign.data.sources import files
from jaxalign.errors import ConfigError, DataError
from jaxalign.evaluate.assistant import Assistant
from jaxalign.evaluate.best_of import BestOf
from jaxalign.evaluate.matching import match_answers, pass_tests
from jaxalign.evaluate.perplexity import perplexity
from jaxalign.evaluate.preferences import RewardModel, preferences, thumbs
from jaxalign.evaluate.refusals import kind_of, refusals, request
from jaxalign.models.config import ModelConfig
from jaxalign.rewards.code import UnitTests
from jaxalign.train.checkpoint import read_meta

OPTIONS = dict(
    limit=None,  # records of each source; None: all
    batch_size=32,
    # Positions a row. One number for every checkpoint, whatever it was trained on, so that figures can be compared.
    length=256,
    max_new_tokens=64,
    answers=False,  # whether conversations and compared answers are answered too, which takes longer than reading them
    seed=0,
    best_of=None,  # answers drawn a prompt, of which reward_model chooses one; None: one answer at temperature 0
    reward_model=None,
    temperature=None,  # of the answers that are drawn; None: 1
)


def evaluate_checkpoint(checkpoint, sources, options=None, tell=None):
    """Every figure that makes sense of a checkpoint on each source.

        text, messages, sharegpt, alpaca …     nats per token, perplexity, bits per byte
        prompts, gsm8k, svamp                  exact match, numeric match with answers that hold a number and F1 of the
                                               words with others, at temperature 0; bits per byte of the answers that
                                               are given (of gsm8k the last number: its solutions are read as
                                               prompt_response); mbpp: share of programs that pass their tests
        pairs, rankings, oasst_trees …         preference accuracy, Kendall's τ-b: by the score of a reward model, by
                                               the log-probability of the answer for a language model, of which also
                                               bits per byte of the best answers; of a reward model calibration, and
                                               accuracy by length
        unpaired                               how often a liked answer stands above one that was not, by the same;
                                               bits per byte of the liked ones

    Of every shape but text: refusal rates of all that is answered, by the kind that requests say they are ("kind":
    "unsafe" or "lookalike", or XSTest's "label"), "other" of those that say none. Answered are prompts and requests of
    a kind; with `answers` also what conversations, compared and liked answers are to, and these are what is matched:
    the last turn, the best, the liked one.

    With `best_of` and `reward_model` only what is answered is measured: of the answers that the reward model likes
    best, with their score and that of all draws (`best_of.BestOf`).

    Args:
      checkpoint: a stage's workdir or one checkpoint's folder.
      sources: a list of "PATH:SHAPE", or of sources as in a config (`data.pipeline.batches`).
      options: of `OPTIONS`.
      tell: called with the result so far when a source is measured; the rest may take long, or fail.
    Returns:
      {source: {figure: {"value", "n", "ci95": (low, high)}}}, one more level for rates by kind. What could not be used
      is there too: `rows_skipped` (bad rows, and what is wrong with the `first`) and `rows_cut` or `answers_cut`
      (longer than `length`).
    Raises:
      ConfigError: an unknown shape or option, or a combination that has no figure, such as a reward model on text;
      DataError: a source without one good row; CheckpointError.
    """
    options = _options(options or {})
    if isinstance(sources, (str, dict)):
        sources = [sources]
    parsed = [_source(source, options["limit"]) for source in sources]
    names = [source if isinstance(source, str) else f"{parsed[n].get('path', 'records')}:{parsed[n]['shape']}"
             for n, source in enumerate(sources)]
    for source in parsed:  # before the first is measured, which may take long
        if "path" in source:
            files(source["path"])
    _, meta = read_meta(checkpoint)
    judge = meta["policy"] == "reward/backbone"
    # A score is read after the last token, which no next one is predicted from.
    ModelConfig(**meta["model"]).need_places(options["length"] + judge, "evaluate: a row", "use a smaller --length")
    if judge and options["best_of"]:
        raise ConfigError(f"evaluate: best_of={options['best_of']} chooses among answers, and {checkpoint} is a reward "
                          "model, which writes none; give it as reward_model, and a policy as the checkpoint")
    model = RewardModel.load(checkpoint) if judge else Assistant.load(
        checkpoint, max_new_tokens=options["max_new_tokens"], batch_size=options["batch_size"])
    if options["best_of"]:
        model = BestOf(model, RewardModel.load(options["reward_model"]), n=options["best_of"],
                       temperature=1.0 if options["temperature"] is None else options["temperature"])
    result = {}
    for name, source in zip(names, parsed):
        result[name] = _figures(model, judge, source, name, options)
        if tell:
            tell(result)
    return result


def _figures(model, judge, source, name, options):
    intake = Intake("skip")
    rows = list(read_rows(source, intake))
    _need_rows(rows, intake, name)
    kind, rates = type(rows[0]), {}
    if judge and kind not in (Ranking, Unpaired):
        raise ConfigError(f"{name}: the checkpoint is a reward model, which scores answers and writes no text; "
                          "evaluate it on pairs, rankings, oasst_trees, finegrained_qa or unpaired")
    best_of = isinstance(model, BestOf)
    sizes = {"batch_size": options["batch_size"], "length": options["length"]}
    if best_of:
        pass  # reads nothing
    elif kind in (Text, Chat):
        rates = perplexity(model, source, intake, **sizes)
    elif kind in (Ranking, Unpaired):
        rates = (preferences if kind is Ranking else thumbs)(model, rows, intake, **sizes)
    if not judge and not best_of and kind in (Ranking, Unpaired, Prompt):
        rates |= _given_answers(model, source, rows, **sizes)
    if not judge and kind is not Text:
        rates |= _spoken(model, source, rows, options)
    if best_of and not rates:
        raise ConfigError(f"{name}: best_of={options['best_of']} chooses among answers, and here is nothing to answer; "
                          "evaluate it on prompts, or on any shape but text with answers=true or rows of a kind "
                          "(unsafe, lookalike)")
    if best_of:
        rates |= model.figures()
    if not rates:
        raise ConfigError(f"{name}: all of its answers were liked, or none was, so there is nothing to compare; give "
                          "answers of both kinds")
    if intake.report.bad:
        rates["rows_skipped"] = {"value": len(intake.report.bad), "n": len(rows) + len(intake.report.bad),
                                 "first": intake.report.bad[0]["error"]}
    if cut := sum(intake.report.truncated.values()):
        answers = sum(len(row.answers) for row in rows) if kind is Ranking else len(rows) if kind is Unpaired else 0
        rates["answers_cut" if answers else "rows_cut"] = {"value": cut, "n": answers or len(rows)}
    return rates


def _given_answers(model, source, rows, **sizes):
    """Nats per token and bits per byte of what was preferred or liked, or is the known answer."""
    if isinstance(rows[0], Unpaired):
        liked = [row.record for row in rows if row.desirable]
        source = {key: source[key] for key in ("shape", "fields", "strip_end") if key in source} | {"records": liked}
    elif isinstance(rows[0], Prompt):
        # Of a program only its tests are known, and they are no answer.
        known = [row for row in rows if source["shape"] != "mbpp" and row.answer and row.answer.strip()]
        source = {"shape": "messages", "records": [
            {"messages": [*[{**message, "train": False} for message in row.messages],
                          {"role": "assistant", "content": row.answer}]} for row in known]}
    if not source.get("records", True):
        return {}
    intake = Intake("skip")
    rates = perplexity(model, source, intake, truncate="left", **sizes)  # as where they are compared
    if cut := sum(intake.report.truncated.values()):
        rates["rows_cut"] = {"value": cut, "n": intake.report.rows}
    return rates


def _spoken(model, source, rows, options):
    """What the model says: how much of it refuses, and where an answer is known how much matches it."""
    asked = [prompt for row in rows if (prompt := _asked(row, options["answers"]))]
    if not asked:
        return {}
    judge = UnitTests() if source["shape"] == "mbpp" else None  # first: where programs can't be run, nobody waits
    texts, ended = model.answers([prompt.messages for prompt in asked], seed=options["seed"])
    rates = {"refused": refusals(asked, texts)}
    if known := [n for n, prompt in enumerate(asked) if prompt.answer is not None]:
        asked, texts, ended = ([column[n] for n in known] for column in (asked, texts, ended))
        rates |= pass_tests(asked, texts, judge) if judge else match_answers(asked, texts, ended)
    return rates


def _asked(row, answers):
    """A row as a prompt, with the answer that is to be matched; None for one that is not answered.

    Args:
      answers: whether conversations, and what people preferred or liked, are answered.
    """
    if kind_of(row) or isinstance(row, Prompt) and row.answer is None:  # all that counts is whether it is refused
        return Prompt(row.path, row.line, request(row.messages), None, row.record)
    if isinstance(row, Prompt):
        return row
    try:
        return as_prompt(as_chat(row)) if answers else None
    except DataError:
        return None


def _need_rows(rows, intake, name):
    if not rows:
        first = intake.report.bad[0]["error"] if intake.report.bad else "the source is empty"
        raise DataError(name, None, "at least one usable row", f"none ({len(intake.report.bad)} bad)", first)


def _options(given):
    for key in given:
        if key not in OPTIONS:
            raise ConfigError(f"evaluate has no option {key!r}; it has: {', '.join(OPTIONS)}")
    options = OPTIONS | {key: value for key, value in given.items() if value is not None}
    for key in ("limit", "batch_size", "length", "max_new_tokens", "best_of"):
        if options[key] is not None and options[key] < 1:
            raise ConfigError(f"evaluate: {key}={options[key]}; expected 1 or more")
    if (options["best_of"] is None) != (options["reward_model"] is None):
        raise ConfigError(f"evaluate: best_of={options['best_of']} and reward_model={options['reward_model']} go "
                          "together: how many answers are drawn, and the reward stage's workdir that chooses of them")
    if options["temperature"] is not None and not (options["best_of"] and options["temperature"] > 0):
        raise ConfigError(f"evaluate: temperature={options['temperature']} is of the answers that best_of draws, above "
                          "0; without best_of all is measured at temperature 0")
    return options


def _source(source, limit):
    if isinstance(source, str):
        path, colon, shape = source.rpartition(":")
        if not colon or not path or "/" in shape:
            raise ConfigError(f"{source!r}: expected PATH:SHAPE, such as dev.jsonl:messages; shapes: "
                              f"{', '.join(SHAPES)}")
        source = {"path": path, "shape": shape}
    source = check_sources(source)[0]
    return source if limit is None else source | {"limit": min(limit, source.get("limit") or limit)}
