"""Candidates: answers of one policy, graded by a judge with noise; grades that are equal are ties."""

import json
import types

import numpy as np
import pytest
import tiny_stages
from ml_collections import ConfigDict

from jaxalign.errors import DataError
from jaxalign.rewards import REWARDS
from jaxalign.stages import candidates as stage
from jaxalign.stages import default_config, train_stage
from jaxalign.stages.candidates import apart, counted, draw, graded, most_different, order


class Assistant:
    """Says what it is told to, in turn; a token a letter."""

    tokenizer = types.SimpleNamespace(encode=list)

    def __init__(self, *texts):
        self.texts, self.asked = texts, None

    def reply(self, conversations, **options):
        self.asked, self.options = conversations, options
        return [self.texts[n % len(self.texts)] for n in range(len(conversations))]


def prompt(n=0, **more):
    asked = f"question {n}"
    return {"prompt": asked, "messages": [{"role": "user", "content": asked}], "gold": {"n": n}, **more}


def settings(**changes):
    return ConfigDict(dict(samples_per_prompt=4, answers=4, grade=0.1, temperatures=[0.7, 1.3, 0.9], choice="different") | changes)


def rank(assistant, rows, judge, *, noise, seed, config):
    """As the stage ranks one split: (rankings, tokens drawn)."""
    answers, drawn = draw(assistant, rows, config.samples_per_prompt, seed=seed, temperatures=config.temperatures)
    scores = graded(rows, answers, judge)
    return order(rows, answers, scores, noise=noise, seed=seed, config=config, choice=config.choice), drawn


SCORES = {"best": 0.94, "good": 0.86, "as good": 0.91, "bad": 0.12}


def judge(prompt, answer, gold):
    return SCORES[answer]


def test_grades_in_steps_tie_what_is_nearly_alike():
    (row,), _ = rank(Assistant(*SCORES), [prompt(kind="fact")], judge, noise=0.0, seed=0, config=settings())
    # In steps of 0.1: 0.9, 0.9, 0.9, 0.1; by the score alone all four would differ.
    assert dict(zip(row["answers"], row["ranks"])) == {"best": 0, "good": 0, "as good": 0, "bad": 1}
    assert dict(zip(row["answers"], row["scores"])) == SCORES and row["kind"] == "fact"
    (fine,), _ = rank(Assistant(*SCORES), [prompt()], judge, noise=0.0, seed=0, config=settings(grade=1e-9))
    assert dict(zip(fine["answers"], fine["ranks"])) == {"best": 0, "as good": 1, "good": 2, "bad": 3}


def test_every_prompt_is_asked_as_often_as_it_says_and_the_judge_sees_its_own():
    seen = []

    def watch(text, answer, gold):
        seen.append((text, gold["n"]))
        return SCORES[answer]

    assistant = Assistant(*SCORES)
    ranked, drawn = rank(assistant, [prompt(0), prompt(1)], watch, noise=0.0, seed=5, config=settings())
    assert [messages[0]["content"] for messages in assistant.asked] == ["question 0"] * 4 + ["question 1"] * 4
    # The temperatures begin anew with every prompt.
    np.testing.assert_allclose(assistant.options.pop("temperature"), [0.7, 1.3, 0.9, 0.7] * 2)
    assert assistant.options == {"seed": 5, "tell": None}
    assert seen == [("question 0", 0)] * 4 + [("question 1", 1)] * 4 and len(ranked) == 2
    assert drawn == 2 * sum(len(text) + 1 for text in SCORES)  # each with its end


def test_a_prompt_with_less_than_two_different_answers_gives_no_ranking():
    for texts in (("best",), ("", "best"), ("",)):
        assert rank(Assistant(*texts), [prompt()], judge, noise=0.0, seed=0, config=settings())[0] == []
    (row,), _ = rank(Assistant("best", "bad", "best", ""), [prompt()], judge, noise=0.0, seed=0, config=settings())
    assert sorted(row["answers"]) == ["bad", "best"]


def test_noise_makes_two_answers_a_bradley_terry_draw():
    scores = {"a": 0.3, "b": 0.0}
    rows = [prompt(n) for n in range(4000)]
    ranked, _ = rank(Assistant("a", "b"), rows, lambda prompt, answer, gold: scores[answer], noise=0.3, seed=1,
                     config=settings(samples_per_prompt=2, grade=1e-6))
    first = np.mean([row["ranks"][row["answers"].index("a")] == 0 for row in ranked])
    # P(a before b) = σ((0.3 − 0) / 0.3)
    assert first == pytest.approx(1 / (1 + np.exp(-1.0)), abs=0.02)
    again, _ = rank(Assistant("a", "b"), rows, lambda prompt, answer, gold: scores[answer], noise=0.3, seed=1,
                    config=settings(samples_per_prompt=2, grade=1e-6))
    assert again == ranked


def test_answers_within_a_grade_are_kept_once_where_they_are_to_lie_apart():
    (row,), _ = rank(Assistant(*SCORES), [prompt()], judge, noise=0.0, seed=0, config=settings(choice="apart"))
    assert (row["answers"], row["ranks"], row["scores"]) == (["best", "bad"], [0, 1], [0.94, 0.12])
    points = np.array([3.0, 9.0, 3.0, 1.0, 7.0, 5.0, 8.0])
    kept = apart(list("abcdefg"), points, 4)
    assert points[kept].tolist() == [9.0, 7.0, 5.0, 1.0] or points[kept].tolist() == [9.0, 7.0, 3.0, 1.0]
    assert kept[0] == 1 and kept[-1] == 3 and 2 not in kept
    assert apart(list("ab"), np.array([1.0, 1.0]), 4) == [0]


def test_no_ranking_of_answers_apart_turns_on_rounding():
    # 0.86 and 0.84 are of two grades when rounded, and alike; 0.5 and 0.41 are not a grade apart either.
    scores = {"a": 0.86, "b": 0.84, "c": 0.5, "d": 0.41}
    (row,), _ = rank(Assistant(*scores), [prompt()], lambda prompt, answer, gold: scores[answer], noise=0.0, seed=0,
                     config=settings(choice="apart"))
    assert dict(zip(row["answers"], row["ranks"])) == {"a": 0, "c": 1}
    rng = np.random.default_rng(0)
    for _ in range(200):
        points = rng.normal(scale=3.0, size=8)
        kept = apart([], points, 4)
        assert (-np.diff(points[kept]) >= 1).all() and points[kept[0]] == points.max()


def test_people_are_shown_answers_that_differ():
    said = ["It is tea.", "It is salt.", "I do not know.", "It is tea. It is a nice place.", "It is tea!"]
    # The first drawn, then the one that shares nothing with it.
    assert most_different(said, None, 3)[:2] == [0, 2]
    assert sorted(most_different(said, None, 9)) == [0, 1, 2, 3, 4] and most_different([], None, 4) == []
    # Two ways to say one thing do not both come before something else is said.
    assert most_different(["It is red.", "It is redder.", "No."], None, 2) == [0, 2]


def test_the_same_answer_said_twice_is_shown_once():
    (row,), _ = rank(Assistant("best", "best", "bad", "bad"), [prompt()], judge, noise=0.0, seed=0, config=settings())
    assert row["answers"] == ["best", "bad"]


def prefer_short(response):
    return -float(len(response))


@pytest.fixture
def candidates(tmp_path, monkeypatch):
    """Runs the stage on prompts of one's own, by a judge of one's own that asks for the response alone."""
    monkeypatch.setitem(REWARDS, "short", prefer_short)

    def run(records, **data):
        path = tiny_stages.jsonl(tmp_path / "prompts.jsonl", records)
        config = default_config("candidates")
        config.update(dict(init_from=tiny_stages.trained("sft"), judge="short", samples_per_prompt=3, dev_samples_per_prompt=5,
                           max_new_tokens=6, batch_size=8, data=dict(train=[dict(path=str(path), shape="prompts")]) | data))
        return train_stage(config, tmp_path / "run")

    return run


def test_prompts_of_ones_own_without_gold_or_dev_data_are_ranked_and_bad_ones_skipped(candidates, tmp_path, capsys):
    records = [{"prompt": "1+1?"}, {"prompt": "2+1?", "answer": 3}, {"prompt": 3}]
    done = candidates(records, on_bad_row="skip")
    assert done["data"] == {"train": {"rows": 2, "bad": 1, "truncated": 0.0}}
    assert json.loads((tmp_path / "run" / "bad_rows.jsonl").read_text())["line"] == 3
    assert "candidates train data: 2 rows, " in capsys.readouterr().out
    ranked = [json.loads(line) for line in (tmp_path / "run" / "rankings.train.jsonl").read_text().splitlines()]
    assert len(ranked) == done["after"]["train_rankings"] >= 1
    for row in ranked:
        assert row["scores"] == [-len(answer) for answer in row["answers"]]
    with pytest.raises(DataError, match="prompts.jsonl:3"):
        candidates(records)
    with pytest.raises(DataError, match="at most 64 tokens"):
        candidates([{"prompt": "why? " * 80}], truncate="error")


def test_dev_answers_are_chosen_in_two_ways_and_judged_once(candidates, tmp_path, monkeypatch):
    judged, copies = [], []
    monkeypatch.setattr(stage, "draw", lambda assistant, rows, count, **how: (
        copies.append(count) or draw(assistant, rows, count, **how)))
    monkeypatch.setattr(stage, "graded", lambda rows, answers, judge: judged.append(len(rows)) or graded(rows, answers, judge))
    dev = tiny_stages.jsonl(tmp_path / "dev.jsonl", [{"prompt": "3+1?"}])
    done = candidates([{"prompt": "1+1?"}, {"prompt": "2+1?"}], dev=[dict(path=str(dev), shape="prompts")])
    assert judged == [2, 1] and copies == [3, 5]
    assert {"train_rankings", "dev_rankings", "blind_rankings"} <= set(done["after"])


def test_what_is_counted_of_rankings():
    rows = [{"answers": ["a", "b", "c"], "ranks": [0, 1, 2], "scores": [0.9, 0.2, 0.5]},  # one of its pairs turned around
            {"answers": ["a", "b"], "ranks": [0, 0], "scores": [0.4, 0.5]}]  # a tie has no order
    assert counted(rows) == {"rankings": 2, "answers": 5, "of_2": 1, "of_3": 1, "pairs": 3, "turned_around": 1 / 3}
    assert counted([]) == {"rankings": 0, "answers": 0, "pairs": 0, "turned_around": 0.0}
