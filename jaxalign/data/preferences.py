"""Readers of human preferences: pairs and K-way rankings, as their authors published them."""

from jaxalign.data.rows import Ranking, Unpaired
from jaxalign.data.turns import pick, prompt_messages, read_transcript, read_turns


def pairs(record, fields):
    """{"chosen", "rejected"}: two whole transcripts (hh-rlhf), two turns or lists of turns, or two answers to a prompt.

    The margin is "margin", or the difference of "chosen_score" and "rejected_score", or 0 where nothing is given.
    """
    sides = [pick(record, fields, "chosen", ("chosen",), (str, dict, list)),
             pick(record, fields, "rejected", ("rejected",), (str, dict, list))]
    if type(sides[0]) is not type(sides[1]):
        raise record.bad("chosen and rejected of one kind", f"{type(sides[0]).__name__}, {type(sides[1]).__name__}")
    if isinstance(sides[0], str) and all(s.startswith("\n\nHuman:") for s in sides):
        prompt, answers = _part([read_transcript(s, record) for s in sides], record)
    elif isinstance(sides[0], list):
        prompt, answers = _part([read_turns(s, record, fields) for s in sides], record)
        if not prompt:  # the lists hold the answers alone
            prompt = prompt_messages(record, fields)
    else:
        prompt = prompt_messages(record, fields)
        answers = [[{"role": "assistant", "content": s}] if isinstance(s, str) else read_turns([s], record, fields)
                   for s in sides]
    for name, answer in zip(("chosen", "rejected"), answers):
        _check_answer(name, answer, record)
    if answers[0] == answers[1]:
        raise record.bad("chosen and rejected that differ", "two equal answers", "drop the row, or on_bad_row='skip'")
    return [Ranking(record.path, record.line, prompt, answers, [0, 1], [(0, 1, _margin(record, fields))],
                    record.value)]


def rankings(record, fields):
    """{"messages" or "prompt", "answers", "ranks" (0 best, equal = tie) or "scores" (higher is better)}."""
    answers = _answers(pick(record, fields, "answers", ("answers", "responses", "completions"), list), record, fields)
    scores = pick(record, fields, "scores", ("scores",), list, required=False)
    ranks = pick(record, fields, "ranks", ("ranks", "rank"), list, required=scores is None)
    values = ranks if ranks is not None else [-s for s in _numbers(scores, "scores", record)]
    values = _numbers(values, "ranks", record)
    if len(values) != len(answers):
        raise record.bad(f"as many ranks as answers ({len(answers)})", str(len(values)))
    return [Ranking(record.path, record.line, prompt_messages(record, fields), answers, _dense(values),
                    record=record.value)]


def unpaired(record, fields):
    """{"messages" ending with the answer, or "prompt" and "completion"; "label": true or 1 where it was liked}."""
    turns = pick(record, fields, "messages", ("messages", "conversations"), list, required=False)
    if turns is not None:
        turns = read_turns(turns, record, fields)
        prompt, answer = turns[:-1], turns[-1:]
    else:
        answer = pick(record, fields, "completion", ("completion", "response", "answer"), (str, list))
        answer = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
        answer = read_turns(answer, record, fields)
        prompt = prompt_messages(record, fields)
    _check_answer("completion" if turns is None else "messages", answer, record)
    if not prompt:
        raise record.bad("a prompt before the answer", "the answer alone")
    name = fields.get("label", "label")
    label = record.value.get(name)
    if not isinstance(label, (bool, int)) or label not in (0, 1):
        raise record.bad(f"{name!r} as true or false", repr(label)[:60], "name it with fields={'label': ...}")
    return [Unpaired(record.path, record.line, prompt, answer, bool(label), record.value)]


def oasst_trees(record, fields):
    """{"prompt": a tree of {"role", "text", "rank", "replies"}}: a row per prompt with two or more ranked replies."""
    root = pick(record, fields, "prompt", ("prompt",), dict)
    rows = []

    def walk(node, before):
        try:
            said = {"role": {"prompter": "user", "assistant": "assistant"}[node["role"]], "content": node["text"]}
            replies = node.get("replies") or []
            ranked = [r for r in replies if isinstance(r.get("rank"), int) and r["role"] == "assistant"]
        except (KeyError, TypeError, AttributeError) as error:
            raise record.bad("nodes with role, text and replies", f"{type(error).__name__}: {error}") from error
        here = [*before, said]
        if node["role"] == "prompter" and len(ranked) >= 2:
            answers = [[{"role": "assistant", "content": r["text"]}] for r in ranked]
            for answer in answers:
                _check_answer("replies", answer, record)
            rows.append(Ranking(record.path, record.line, here, answers, _dense([r["rank"] for r in ranked])))
        for reply in replies:
            walk(reply, here)

    walk(root, [])
    if not rows:
        raise record.bad("a prompt with two or more ranked replies", "none", "drop the tree, or on_bad_row='skip'")
    return rows


def finegrained_qa(record, fields):
    """{"question", "passages", "prediction 1…4", "preference": six labels} (Wu et al. 2023, arXiv:2306.01693).

    The labels judge (1,2) (1,3) (1,4) (2,3) (2,4) (3,4): 0 a tie, 1 the first better, 2 the second. They are kept as
    pairs as judged; the ranks order the answers by won pairs, a tie counting half to each.
    `fields={"passages": None}` asks the question without its passages.
    """
    question = pick(record, fields, "question", ("question",), str)
    passages = pick(record, fields, "passages", ("passages",), list, required=False)
    names = [f"prediction {i}" for i in range(1, 5)]
    answers = [[{"role": "assistant", "content": pick(record, fields, name, (name,), str)}] for name in names]
    for name, answer in zip(names, answers):
        _check_answer(name, answer, record)
    labels = pick(record, fields, "preference", ("preference",), list)
    if len(labels) != 6 or any(label not in (0, 1, 2) for label in labels):
        raise record.bad("'preference' as six labels among 0, 1, 2", repr(labels)[:60])
    won, judged = [0.0] * 4, []
    for (i, j), label in zip([(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)], labels):
        won[i] += {0: 0.5, 1: 1.0, 2: 0.0}[label]
        won[j] += {0: 0.5, 1: 0.0, 2: 1.0}[label]
        if label:
            judged.append((i, j, 1.0) if label == 1 else (j, i, 1.0))
    if passages:
        context = "\n\n".join(" ".join(p[1:]) if isinstance(p, list) else str(p) for p in passages)
        question = f"{context}\n\n{question}"
    return [Ranking(record.path, record.line, [{"role": "user", "content": question}], answers,
                    _dense([-w for w in won]), judged)]


def _part(transcripts, record):
    """Two transcripts → the turns they share and the two ways they go on, each starting with an assistant turn."""
    a, b = transcripts
    shared = 0
    while shared < min(len(a), len(b)) and a[shared] == b[shared]:
        shared += 1
    while shared and (shared >= min(len(a), len(b)) or a[shared]["role"] != "assistant"
                      or b[shared]["role"] != "assistant"):
        shared -= 1  # back to where both sides let the assistant speak
    if shared == 0 and a[0]["role"] != "assistant":
        raise record.bad("transcripts that share a prompt", "two that part before an answer")
    return a[:shared], [a[shared:], b[shared:]]


def _answers(values, record, fields):
    if len(values) < 2:
        raise record.bad("two or more answers", str(len(values)))
    answers = []
    for value in values:
        if isinstance(value, str):
            answers.append([{"role": "assistant", "content": value}])
        else:
            answers.append(read_turns(value if isinstance(value, list) else [value], record, fields))
        _check_answer("answers", answers[-1], record)
    return answers


def _check_answer(name, turns, record):
    if not turns or turns[-1]["role"] != "assistant" or not turns[-1]["content"].strip():
        raise record.bad(f"{name!r} ending in a non-empty assistant turn", "an empty answer",
                         "drop the row, or on_bad_row='skip'")


def _margin(record, fields):
    margin = pick(record, fields, "margin", ("margin",), (int, float), required=False)
    if margin is not None:
        return float(margin)
    scores = [pick(record, fields, name, names, (int, float), required=False) for name, names in
              (("chosen_score", ("chosen_score", "score_chosen")),
               ("rejected_score", ("rejected_score", "score_rejected")))]
    return 0.0 if None in scores else float(scores[0] - scores[1])


def _numbers(values, name, record):
    if any(isinstance(v, bool) or not isinstance(v, (int, float)) or v != v for v in values):
        raise record.bad(f"{name!r} as numbers", repr(values)[:60])
    return values


def _dense(values):
    """Ranks 0, 1, 2… in the order of `values` (smallest first); equal values share a rank."""
    order = {v: i for i, v in enumerate(sorted(set(values)))}
    return [order[v] for v in values]
