"""Rows → tokenised corpora, one function a kind of batch; everything cut or refused is in the intake's report."""

from jaxalign.data.chat import check_mask, check_prefix_stable, render
from jaxalign.data.corpus import PromptCorpus, RankingCorpus, Sequences, TokenCorpus, UnpairedCorpus
from jaxalign.data.intake import as_chat, as_judged, as_prompt, as_ranking
from jaxalign.data.rows import Ranking, Text, Unpaired, pairs_of
from jaxalign.errors import ConfigError, DataError


def tokens(rows, tokenizer, intake, *, length, truncate, template):
    """Documents and conversations. A document longer than a row is cut into pieces, each target kept; a conversation
    is truncated. Returns (TokenCorpus, source number per item)."""
    sequences, start, positions, origin, flat = Sequences(), [], [], [], 0
    report = intake.report
    for source, row in rows:
        try:
            if isinstance(row, Text):
                ids = [*tokenizer.start_ids, *tokenizer.encode(row.text), tokenizer.eos_id]
                unpredicted = max(len(tokenizer.start_ids), 1)  # nothing stands before a text's first token
                mask = [0] * unpredicted + [1] * (len(ids) - unpredicted)
                report.text_bytes += len(row.text.encode())
                report.chunked += len(ids) - 1 > length
            else:
                row = as_chat(row)
                ids, mask = render(row.messages, tokenizer, require_target=True, template=template, path=row.path,
                                   line=row.line)
                ids, mask = _truncate(ids, mask, length + 1, truncate, row, report)
        except DataError as error:
            intake.bad(error)
            continue
        sequences.add(ids, mask)
        for first in range(0, len(ids) - 1, length):
            start.append(flat + first)
            positions.append(min(length, len(ids) - 1 - first))
            origin.append(source)
        flat += len(ids)
        report.rows += 1
    return TokenCorpus(sequences.freeze(), start, positions, length, tokenizer.pad_id), origin


def rankings(rows, tokenizer, intake, *, length, truncate, template, pairs, max_answers):
    """K-way rankings, or with `pairs` every judged pair of them. Returns (RankingCorpus, source number per item)."""
    sequences, members, ranks, margins, origin = Sequences(), [], [], [], []
    for source, row in rows:
        try:
            encoded = _answers(as_ranking(row), tokenizer, length, truncate, template, intake.report)
        except DataError as error:
            intake.bad(error)
            continue
        intake.report.rows += 1
        if pairs:
            added = [sequences.add(*pair) for pair in encoded]
            for better, worse, margin in pairs_of(row):
                members.append([added[better], added[worse]])
                ranks.append([0, 1])
                margins.append(margin)
                origin.append(source)
        else:
            keep = sorted(range(len(encoded)), key=lambda i: (row.ranks[i], i))[:max_answers]
            intake.report.dropped_answers += len(encoded) - len(keep)
            members.append([sequences.add(*encoded[i]) for i in sorted(keep)])
            ranks.append([row.ranks[i] for i in sorted(keep)])
            margins.append(0.0)
            origin.append(source)
    answers = 2 if pairs else max_answers or max(map(len, members), default=2)
    return RankingCorpus(sequences.freeze(), members, ranks, margins, answers, length, tokenizer.pad_id, pairs), origin


def unpaired(rows, tokenizer, intake, *, length, truncate, template):
    """Single answers, each liked or not; of a pair that people ordered, the better one was liked and the worse one not
    (arXiv:2402.01306). Each comes with the same prompt's continuation by another prompt's answer, for KTO's
    reference point. Returns (UnpairedCorpus, source number per item)."""
    judged, desirable, origin = [], [], []
    for source, row in rows:
        try:
            if isinstance(as_judged(row), Unpaired):
                alone = Ranking(row.path, row.line, row.messages, [row.answer], [0])
                found = [(_answers(alone, tokenizer, length, truncate, template, intake.report)[0], row.desirable)]
            else:
                encoded = _answers(row, tokenizer, length, truncate, template, intake.report)
                found = [(encoded[i], i == pair[0]) for pair in pairs_of(row) for i in pair[:2]]
        except DataError as error:
            intake.bad(error)
            continue
        intake.report.rows += 1
        judged += [answer for answer, _ in found]
        desirable += [liked for _, liked in found]
        origin += [source] * len(found)
    sequences = Sequences()
    members = [[sequences.add(*answer), sequences.add(*other)]
               for answer, other in zip(judged, _mismatched(judged, length))]
    return UnpairedCorpus(sequences.freeze(), members, desirable, length, tokenizer.pad_id), origin


def _mismatched(judged, length):
    """Each prompt with the next row's answer to a different prompt, as (ids, mask)."""
    start = [mask.index(1) for _, mask in judged]
    parts = [(ids[:s], (ids[s:], mask[s:])) for (ids, mask), s in zip(judged, start)]
    made = []
    for n, (prompt, _) in enumerate(parts):
        others = (parts[(n + k) % len(parts)] for k in range(1, len(parts)))
        ids, mask = next((answer for other, answer in others if other != prompt), (None, None))
        if ids is None:
            raise ConfigError("KTO's reference point needs answers to at least two different prompts; got one prompt")
        cut = max(0, len(prompt) + len(ids) - (length + 1))
        prompt = prompt[:1] + prompt[1 + min(cut, len(prompt) - 2):]  # <s> and the assistant's header stay
        made.append(((prompt + ids)[:length + 1], ([0] * len(prompt) + mask)[:length + 1]))
    return made


def prompts(rows, tokenizer, intake, *, length, truncate, template):
    """Prompts for sampling. Returns (PromptCorpus, source number per item)."""
    if truncate == "right":
        raise ConfigError("truncate='right' would cut off the header that makes the assistant speak; for prompts use "
                          "'left' or 'error'")
    check_prefix_stable(tokenizer, template)
    sequences, records, origin = Sequences(), [], []
    for source, row in rows:
        try:
            row = as_prompt(row)
            messages = [{**m, "train": False} for m in row.messages]  # an empty earlier turn is no target here
            ids, mask = render(messages, tokenizer, add_generation_prompt=True, template=template, path=row.path,
                               line=row.line)
            ids, mask = _truncate(ids, mask, length, truncate, row, intake.report, targets=False)
        except DataError as error:
            intake.bad(error)
            continue
        sequences.add(ids, mask)
        asked = [m["content"] for m in row.messages if m["role"] == "user"]
        records.append({**(row.record or {}), "messages": row.messages, "prompt": asked[-1] if asked else "",
                        "answer": row.answer, "record": row.record})
        origin.append(source)
        intake.report.rows += 1
    return PromptCorpus(sequences.freeze(), records, length, tokenizer.pad_id), origin


def _truncate(ids, mask, most, side, row, report, targets=True):
    """At most `most` ids: the end goes ("right"), or what follows <s> goes ("left"), or it is an error."""
    cut = len(ids) - most
    if cut > 0:
        if side == "error":
            raise DataError(row.path, row.line, f"at most {most} tokens", str(len(ids)),
                            "a larger length, or truncate='right' or 'left'")
        if side == "right":
            ids, mask = ids[:most], mask[:most]
        else:
            ids, mask = ids[:1] + ids[1 + cut:], mask[:1] + mask[1 + cut:]
        if targets and not any(mask):
            raise DataError(row.path, row.line, f"a target token within {most} tokens", f"none left of {most + cut}",
                            "a larger length, another truncate, or on_bad_row='skip'")
        report.truncated[side] += 1
        report.cut_tokens += cut
    return ids, mask


def _answers(row, tokenizer, length, side, template, report):
    """(ids, mask) of each answer after the shared prompt. "left" cuts the same from the prompt for all, so that the
    answers are still compared under one prompt."""
    prompt = [{**m, "train": False} for m in row.messages]
    whole = [render([*prompt, *answer], tokenizer, template=template, path=row.path, line=row.line)
             for answer in row.answers]
    for _, mask in whole:
        check_mask(mask, row.path, row.line)
    cut = max(len(ids) for ids, _ in whole) - (length + 1)
    if cut <= 0:
        return whole
    if side == "left":
        shared = min(mask.index(1) for _, mask in whole) - 1  # the header before the answer must stay
        if cut > shared - 1:
            raise DataError(row.path, row.line, f"answers that fit in {length} tokens",
                            f"one of {max(sum(mask) for _, mask in whole)}", "a larger length, or on_bad_row='skip'")
        report.truncated["left"] += len(whole)
        report.cut_tokens += cut * len(whole)
        return [(ids[:1] + ids[1 + cut:], mask[:1] + mask[1 + cut:]) for ids, mask in whole]
    if side == "right" and not all(any(mask[:length + 1]) for _, mask in whole):  # before any of them is counted as cut
        raise DataError(row.path, row.line, f"every answer to start within {length + 1} tokens",
                        f"one that starts at {max(mask.index(1) for _, mask in whole) + 1}",
                        "a larger length, truncate='left', or on_bad_row='skip'")
    return [_truncate(ids, mask, length + 1, side, row, report) for ids, mask in whole]
