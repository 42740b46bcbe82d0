"""Figures of a checkpoint on data: what makes sense follows from the kind of row that a source's shape gives."""

from jaxalign.data.intake import Intake, check_sources, read_rows
from jaxalign.data.rows import Chat, Prompt, Ranking, Text, Unpaired
from jaxalign.data.shapes import SHAPES
from jaxalign.data.sources import files
from jaxalign.errors import ConfigError, DataError
from jaxalign.evaluate.assistant import Assistant
from jaxalign.evaluate.best_of import BestOf
from jaxalign.evaluate.matching import match_answers
from jaxalign.evaluate.perplexity import perplexity
from jaxalign.evaluate.preferences import RewardModel, preferences
from jaxalign.evaluate.refusals import kind_of, refusals
from jaxalign.train.checkpoint import read_meta

OPTIONS = dict(
    limit=None,  # records of each source; None: all
    batch_size=32,
    # Positions a row. One number for every checkpoint, whatever it was trained on, so that figures can be compared.
    length=256,
    max_new_tokens=64,
    seed=0,
    best_of=None,  # answers drawn a prompt, of which reward_model chooses one; None: one answer at temperature 0
    reward_model=None,
    temperature=None,  # of the answers that are drawn; None: 1
)


def evaluate_checkpoint(checkpoint, sources, options=None):
    """Every figure that makes sense of a checkpoint on each source.

        text, messages, sharegpt, alpaca …     nats per token, perplexity, bits per byte; refusal rates of rows that
                                               say which kind of request they are
        prompts, gsm8k, svamp                  exact and numeric match at temperature 0, refusal rates; with `best_of`
                                               those of the best of n answers, and their mean score
        pairs, rankings, oasst_trees …         preference accuracy, Kendall's τ-b: by the score of a reward model, by
                                               the log-probability of the answer for a language model; of a reward
                                               model calibration, and accuracy by length

    Args:
      checkpoint: a stage's workdir or one checkpoint's folder.
      sources: a list of "PATH:SHAPE", or of sources as in a config (`data.pipeline.batches`).
      options: of `OPTIONS`.
    Returns:
      {source: {figure: {"value", "n", "ci95": (low, high)}}}, one more level for rates by kind. What could not be used
      is there too: `rows_skipped` (bad rows, and what is wrong with the `first`) and `rows_cut` or `answers_cut` (longer than `length`).
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
    if judge and options["best_of"]:
        raise ConfigError(f"evaluate: best_of={options['best_of']} chooses among answers, and {checkpoint} is a reward "
                          "model, which writes none; give it as reward_model, and a policy as the checkpoint")
    model = RewardModel.load(checkpoint) if judge else Assistant.load(
        checkpoint, max_new_tokens=options["max_new_tokens"], batch_size=options["batch_size"])
    if options["best_of"]:
        model = BestOf(model, RewardModel.load(options["reward_model"]), n=options["best_of"],
                       temperature=1.0 if options["temperature"] is None else options["temperature"])
    return {name: _figures(model, judge, source, name, options) for name, source in zip(names, parsed)}


def _figures(model, judge, source, name, options):
    intake = Intake("skip")
    rows = list(read_rows(source, intake))
    _need_rows(rows, intake, name)
    kind, rates = type(rows[0]), {}
    if judge and kind is not Ranking:
        raise ConfigError(f"{name}: the checkpoint is a reward model, which scores answers and writes no text; "
                          "evaluate it on pairs, rankings, oasst_trees or finegrained_qa")
    if kind is Unpaired:
        raise ConfigError(f"{name}: an answer that was liked or not has no figure of its own; evaluate on pairs or "
                          "rankings, or read the talks as shape=messages")
    best_of = isinstance(model, BestOf)
    if best_of and kind in (Text, Ranking):
        raise ConfigError(f"{name}: best_of={options['best_of']} answers prompts, and has no figure on texts or "
                          "rankings; leave it out, or evaluate on prompts")
    if kind in (Text, Chat) and not best_of:
        rates = perplexity(model, source, intake, batch_size=options["batch_size"], length=options["length"])
    elif kind is Ranking:
        rates = preferences(model, rows, intake, batch_size=options["batch_size"], length=options["length"])
    if kind in (Prompt, Chat):
        asked = [row for row in rows if kind_of(row)]
        if asked:
            rates |= {"refused": refusals(model, asked, seed=options["seed"])}
        answered = [row for row in rows if kind is Prompt and row.answer is not None and not kind_of(row)]
        if answered:
            rates |= match_answers(model, answered, seed=options["seed"])
        if best_of:
            if kind is Prompt and not rates:  # their score is a figure too
                model.answers([row.messages for row in rows], seed=options["seed"])
            rates |= model.figures() if model.scores else {}
    if not rates:
        raise ConfigError(f"{name}: its prompts have neither an answer to compare with nor a kind (unsafe, lookalike) "
                          'to count refusals by; add the field "answer" or "kind", or name it in a source\'s `fields`')
    if intake.report.bad:
        rates["rows_skipped"] = {"value": len(intake.report.bad), "n": len(rows) + len(intake.report.bad),
                                 "first": intake.report.bad[0]["error"]}
    if cut := sum(intake.report.truncated.values()):
        answers = sum(len(row.answers) for row in rows) if kind is Ranking else 0
        rates["answers_cut" if answers else "rows_cut"] = {"value": cut, "n": answers or len(rows)}
    return rates


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
