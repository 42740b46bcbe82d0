"""Rewards from a config: bound by name, summed by weight, and no fault of theirs ends a run or goes unsaid."""

import pathlib
import re
import threading
import time
import types

import numpy as np
import pytest

from jaxalign.batches import signature
from jaxalign.errors import ConfigError
from jaxalign.rewards import REWARDS, __file__ as REWARDS_FILE
from jaxalign.rewards import deadline as deadlines
from jaxalign.rewards.deadline import Deadline, TimedOut
from jaxalign.rewards.run import Rewards

ROWS = [{"prompt": "1+1?", "answer": "2", "messages": [{"role": "user", "content": "1+1?"}], "level": n}
        for n in range(4)]
EVERY = np.ones(4, bool)


def run(entries, responses=("2", "3", "2", "x"), rows=ROWS, counts=EVERY, table=None, said=None, given=None):
    said = [] if said is None else said
    return Rewards(entries, table or REWARDS, given)(rows, list(responses), counts, said.append)


def right(response, answer):
    return float(response == answer)


def test_the_sum_is_weighted_and_each_part_is_logged():
    total, figures = run([dict(name="numeric", weight=2.0), dict(name="length", weight=0.5, most=1, unit="characters")],
                         ["2", "3", "22", "2x"])
    np.testing.assert_allclose(total, [2.0, 0.0, -0.5, 2.0 - 0.5])
    assert total.dtype == np.float32
    assert figures == {"reward/numeric": 0.5, "reward/numeric/failed": 0.0, "reward/length": -0.5,
                       "reward/length/failed": 0.0}


def test_a_reward_asks_by_name_for_one_row_or_for_all():
    seen = {}

    def one(row, messages, prompt, *, level=0):
        return row["level"] >= level and messages[0]["content"] == prompt

    def every(prompts, responses, answers, conversations, rows):
        seen.update(locals())
        return np.arange(4.0)

    entries = [dict(name="one", level=2), dict(name="every", weight=10.0)]
    total, _ = run(entries, table={"one": one, "every": every})
    np.testing.assert_array_equal(total, [0, 10, 21, 31])
    assert seen["rows"] == ROWS and seen["answers"] == ["2"] * 4 and seen["conversations"][0] is ROWS[0]["messages"]


def test_rows_that_do_not_count_or_have_no_answer_are_passed_over():
    rows = [dict(row, answer=None if n == 1 else "2") for n, row in enumerate(ROWS)]
    calls = []

    def wants_answer(response, answer):
        calls.append(answer)
        return 1.0

    table = {"a": wants_answer, "b": lambda response: 1.0, "c": lambda responses, answers: [1.0 for a in answers if a]}
    total, figures = run([dict(name="a"), dict(name="b", weight=0.5), dict(name="c", weight=0.25)], rows=rows,
                         table=table, counts=np.array([True, True, True, False]))
    np.testing.assert_array_equal(total, [1.75, 0.5, 1.75, 0])
    assert calls == ["2", "2"] and figures["reward/a"] == figures["reward/b"] == 1.0
    total, figures = run([dict(name="a"), dict(name="c")], table=table, counts=np.zeros(4, bool))
    assert not total.any() and figures["reward/c"] == figures["reward/c/failed"] == 0.0


def test_what_has_something_to_prepare_is_a_class():
    class Prepared:
        made = 0

        def __init__(self, load_reward_model, *, checkpoint):
            Prepared.made += 1
            self.value = load_reward_model(checkpoint)

        def __call__(self, response, answer):
            return self.value

    table = {"prepared": Prepared}
    total, _ = run([dict(name="prepared", checkpoint="7")], table=table, given={"load_reward_model": float})
    np.testing.assert_array_equal(total, [7.0] * 4)
    assert Prepared.made == 1
    with pytest.raises(ConfigError, match="Prepared needs the option checkpoint"):
        run([dict(name="prepared")], table=table, given={"load_reward_model": float})
    with pytest.raises(ConfigError, match="Prepared asks for load_reward_model .* cannot give"):
        run([dict(name="prepared", checkpoint="7")], table=table)


@pytest.mark.parametrize("entries, words", [
    ([], "config.rewards is empty; give at least one of both, code, exact"),
    ([dict(weight=1.0)], r"config.rewards\[0\] has no name"),
    ([dict(name="numeric"), dict(name="numric")], "no function 'numric'; did you mean 'numeric'"),
    ([dict(name="numeric", wieght=1.0)], r"config.rewards\[0\] has no key 'wieght'; did you mean 'weight'"),
    ([dict(name="numeric", words=1)], "numeric_match has no option 'words'; it has: none"),
    ([dict(name="format")], "FormatMatch needs the option pattern"),
    ([dict(name="format", pattern=".", patern=".")], "FormatMatch has no option 'patern'; did you mean 'pattern'"),
    ([dict(name="numeric", weight="1")], r"config.rewards\[0\].weight: expected float, got '1'"),
    ([dict(name="numeric", weight=True)], "expected float, got True"),
    ([dict(name="numeric", timeout=-1)], "timeout=-1 must not be below 0"),
    ([dict(name="numeric", failed=float("nan"))], "failed=nan"),
    ([dict(name="numeric"), dict(name="numeric")], "names 'numeric' 2 times; give each its own label"),
    ([dict(name="both")], "of one row .* or of all .*, not both; this one asks for response, answers"),
    ([dict(name="wishful")], "wishful asks for logits .*it can give: answer, messages, prompt, response, row"),
    ([dict(name="wishes")], "wishes asks for logits .*it can give: answers, conversations, prompts, responses, rows"),
    ([dict(name="weighs", weight=1.0)], "weighs has an option 'weight', which every entry has; rename it"),
    ([dict(name="learned", checkpoint="x")], "LearnedReward asks for load_reward_model"),
])
def test_a_wrong_entry_is_an_error_before_anything_runs(entries, words):
    def both(response, answers):
        raise AssertionError

    def wishful(response, logits):
        raise AssertionError

    def wishes(responses, logits):
        raise AssertionError

    def weighs(response, *, weight):
        raise AssertionError

    with pytest.raises(ConfigError, match=words):
        Rewards(entries, REWARDS | {f.__name__: f for f in (both, wishful, wishes, weighs)})


def test_the_same_reward_twice_under_two_labels():
    figures = run([dict(name="format", label="short", pattern="."),
                   dict(name="format", label="digit", pattern=r"\d")])[1]
    assert figures["reward/short"] == 1.0 and figures["reward/digit"] == 0.75


def faulty(fault):
    """A reward that is right about three rows and has a fault on the third, its response is "boom"."""
    def reward(response, answer):
        return fault() if response == "boom" else right(response, answer)

    return reward


def raises(error):
    raise error


class Slippery:
    def __float__(self):
        raise TypeError("no")


class Opaque:
    """As arrays of some libraries, which have errors of their own."""

    def __float__(self):
        raise RuntimeError("more than one element")

    __str__ = __float__


FAULTS = {
    "raises": (lambda: 1 / 0, "ZeroDivisionError: division by zero"),
    "exits": (lambda: raises(SystemExit(0)), "SystemExit: 0"),
    "nan": (lambda: float("nan"), "returned nan"),
    "infinite": (lambda: np.float32(-np.inf), "returned -inf"),
    "overflows": (lambda: 1e39, "returned 1e+39"),
    "beyond floats": (lambda: 10 ** 400, "returned inf"),
    "none": (lambda: None, "returned 'None', expected a number"),
    "text": (lambda: "right", "returned 'right'"),
    "object": (Slippery, "expected a number"),
    "array": (Opaque, "returned 'Opaque', expected a number"),
    "loops": (lambda: [None for _ in iter(int, 1)], "no result within 0.2 s"),
    "sleeps": (lambda: time.sleep(60), "no result within 0.2 s"),
    "backtracks": (lambda: re.fullmatch("(a+)+b", "a" * 60), "no result within 0.2 s"),
    "multiplies": (lambda: 7 ** (7 ** 12), "no result within 0.2 s"),
    "catches": (lambda: catches_everything(), "no result within 0.2 s"),
}


def catches_everything():
    try:
        time.sleep(60)
    except Exception:
        return 1.0


@pytest.mark.parametrize("failed", [0.0, -0.5])
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_costs_its_row_and_is_counted_and_said(name, failed):
    fault, words = FAULTS[name]
    said, began = [], time.monotonic()
    rewards = Rewards([dict(name="faulty", timeout=0.2, failed=failed), dict(name="right", weight=10.0)],
                      {"faulty": faulty(fault), "right": right})
    total, figures = rewards(ROWS, ["2", "3", "boom", "2"], EVERY, said.append)
    assert time.monotonic() - began < 5
    np.testing.assert_array_equal(total, [11, 0, failed, 11])
    assert figures["reward/faulty/failed"] == 1.0 and figures["reward/right/failed"] == 0.0
    assert figures["reward/faulty"] == pytest.approx((2 + failed) / 4)
    assert len(said) == 1 and words in said[0] and f"failed on 1 of 4 rows, which count as {failed:g}" in said[0]
    rewards(ROWS, ["2", "3", "boom", "2"], EVERY, said.append)
    assert len(said) == 1  # the count in the figures goes on saying it


def test_another_kind_of_fault_is_said_too_and_all_rows_failing_whenever_it_sets_in():
    said = []
    rewards = Rewards([dict(name="f")], {"f": lambda response: {"v": 1.0}.get(response) or raises(
        {"k": KeyError, "t": TypeError}[response]("x"))})
    for responses, lines in [("vvvk", 1), ("vvkk", 1), ("vvkt", 2), ("kkkk", 3), ("tttt", 3), ("vvvk", 3), ("kktt", 4)]:
        rewards(ROWS, list(responses), EVERY, said.append)
        assert len(said) == lines, (responses, said)
    assert "KeyError" in said[0] and "TypeError" in said[1]
    assert "failed on all 4 rows" in said[2] and "failed on all 4 rows" in said[3]


@pytest.mark.parametrize("returned, values, failed", [
    ([1.0, None, float("nan"), 2.0], [1, -1, -1, 2], 2),
    (np.array([1.0, 2.0, 3.0, 4.0]), [1, 2, 3, 4], 0),
    ([1.0], [-1, -1, -1, -1], 4),
    (3.0, [-1, -1, -1, -1], 4),
    ((1.0 / n for n in (1, 2, 4, 0)), [-1, -1, -1, -1], 4),  # fails while its results are taken
    ((1.0 / n for n in (1, 2, 4, 8)), [1, 0.5, 0.25, 0.125], 0),
    (ValueError("x"), [-1, -1, -1, -1], 4),
])
def test_a_reward_of_all_rows_fails_by_row_or_whole(returned, values, failed):
    def every(responses):
        return raises(returned) if isinstance(returned, Exception) else returned

    total, figures = run([dict(name="every", failed=-1.0)], table={"every": every})
    np.testing.assert_array_equal(total, values)
    assert figures["reward/every/failed"] == failed


def test_the_time_of_a_reward_of_all_rows_is_that_of_its_rows():
    def every(responses):
        time.sleep(0.3)
        return [1.0] * 4

    assert run([dict(name="every", timeout=0.2)], table={"every": every})[1]["reward/every/failed"] == 0
    assert run([dict(name="every", timeout=0.05)], table={"every": every})[1]["reward/every/failed"] == 4


def test_a_rollout_that_waits_for_a_reward_says_so(monkeypatch):
    monkeypatch.setattr("jaxalign.rewards.run.SLOW", 0.1)
    said = []
    table = {"slow": lambda responses: time.sleep(0.5) or [1.0] * 4, "quick": lambda response: 1.0}
    run([dict(name="quick"), dict(name="slow", timeout=20.0)], table=table, said=said)
    line, = said
    assert "'slow' has taken 0.1 s on a rollout of 4 rows; its timeout of 20 s a row lets it take 80 s" in line


def test_a_hang_between_the_results_of_all_rows_is_ended_too():
    def every(responses):
        yield 1.0
        time.sleep(60)

    said, began = [], time.monotonic()
    total, figures = run([dict(name="every", timeout=0.05, failed=-1.0)], table={"every": every}, said=said)
    assert time.monotonic() - began < 5 and figures["reward/every/failed"] == 4 and total.tolist() == [-1.0] * 4
    assert "no result within 0.2 s" in said[0]


def test_no_sum_of_finite_rewards_is_infinite():
    def vast(response):
        return {"2": 3e35, "3": -3e35}.get(response, 1.0)

    entries = [dict(name="vast", label=str(n), weight=1.0) for n in range(100)]
    total, figures = run(entries, table={"vast": vast})
    assert np.isfinite(total).all() and total[0] > 1e37 and figures["reward/7/failed"] == 0
    said = []
    total, figures = run([dict(name="vast", weight=2.0)], table={"vast": vast}, said=said)
    assert total.tolist() == [0.0, 0.0, 0.0, 2.0] and figures["reward/vast/failed"] == 3
    assert "finite, and so times weight=2" in said[0]
    with pytest.raises(ConfigError, match="weight=1e[+]300 finite"):
        run([dict(name="vast", weight=1e300)], table={"vast": vast})


def test_a_wrong_config_is_not_a_fault_of_a_row():
    with pytest.raises(ConfigError, match="mend me"):
        run([dict(name="f")], table={"f": lambda response: raises(ConfigError("mend me"))})
    with pytest.raises(KeyboardInterrupt):
        run([dict(name="f")], table={"f": lambda response: raises(KeyboardInterrupt())})


def test_away_from_the_main_thread_it_runs_and_says_that_nothing_ends_a_hang():
    said, got = [], []
    rewards = Rewards([dict(name="numeric")], REWARDS)

    def work():
        got.extend(rewards(ROWS, ["2"] * 4, EVERY, said.append)[0] for _ in range(2))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    np.testing.assert_array_equal(got, np.ones((2, 4)))
    assert len(said) == 1 and "a reward that hangs stops the run" in said[0]


def test_a_call_that_catches_the_alarm_gets_another(monkeypatch):
    monkeypatch.setattr(deadlines, "AGAIN", 0.1)

    def stubborn():
        try:
            time.sleep(60)
        except:  # noqa: E722
            time.sleep(60)

    with Deadline() as deadline, pytest.raises(TimedOut):
        deadline.call(0.1, stubborn)


def test_the_alarm_of_others_is_put_back():
    import signal

    before = signal.signal(signal.SIGALRM, lambda *_: None)
    try:
        mine = signal.getsignal(signal.SIGALRM)
        with Deadline() as deadline:
            assert deadline.call(1.0, lambda: 5) == 5
        assert signal.getsignal(signal.SIGALRM) is mine and signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_what_no_alarm_ends_says_where_it_hangs(monkeypatch, tmp_path):
    with open(tmp_path / "errors", "w+") as file:
        monkeypatch.setattr("sys.__stderr__", file)
        with Deadline() as deadline, pytest.raises(TimedOut):
            deadline.call(0.05, long_in_c)
        file.seek(0)
        assert "in long_in_c" in file.read()


def long_in_c():
    """One call into C that looks for no signal before its end."""
    sum(map(abs, range(30_000_000)))


README = pathlib.Path(REWARDS_FILE).with_name("README.md").read_text(encoding="utf-8")


def test_the_table_of_the_readme_names_every_reward_and_its_options():
    rows = [line.split("|") for line in README.split("| name |")[1].split("\n\n")[0].splitlines()[2:]]
    assert [row[1].strip(" `") for row in rows] == list(REWARDS)
    for row in rows:
        options = signature(REWARDS[row[1].strip(" `")])[1]
        assert re.findall(r"`(\w+)`", row[3]) == list(options), row[1]


def test_the_readme_s_own_reward_runs_in_the_readme_s_config(tmp_path, monkeypatch):
    config, own = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "my_rewards.py").write_text(own)
    monkeypatch.syspath_prepend(str(tmp_path))
    holder = types.SimpleNamespace()
    exec(config, {"config": holder})
    entries = [entry for entry in holder.rewards if entry["name"] != "math"]  # an extra
    total, _ = run(entries, ["2 please", "<think>1+1</think> <answer>2</answer>", "Thank you", ""])
    np.testing.assert_allclose(total, [0.1, 0.2, 0.1, 0])
