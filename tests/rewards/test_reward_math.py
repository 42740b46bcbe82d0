"""Mathematical equality by math-verify."""

import importlib.util
import sys
import time

import numpy as np
import pytest

from jaxalign.errors import ConfigError
from jaxalign.rewards import REWARDS
from jaxalign.rewards.run import Rewards

installed = pytest.mark.skipif(not importlib.util.find_spec("math_verify"), reason="needs the extra `math`")


def run(pairs, **settings):
    said = []
    rewards = Rewards([dict(name="math", **settings)], REWARDS)
    total, figures = rewards([{"prompt": "", "answer": answer} for _, answer in pairs], [said for said, _ in pairs],
                             np.ones(len(pairs), bool), said.append)
    return total.tolist(), figures, said


@installed
def test_equal_is_more_than_written_alike(caplog):
    pairs = [("The answer is 5.", "5"), (r"so \boxed{0.5}", r"\frac{1}{2}"), (r"so $\frac{2}{4}$", r"$\frac{1}{2}$"),
             ("we get 0.5", "1/2"), ("1234", "1,234"), (r"\boxed{(x+1)^2}", "x^2+2x+1"), (r"$2\sqrt{2}$", r"\sqrt{8}"),
             (r"$\{2,1\}$", r"\{1,2\}"), (r"\boxed{3}", "x=3"), ("so #### 18", "9+9=18\n#### 18"),
             ("17, no: <answer>18</answer>", "18"), ("50%", r"50\%")]
    total, figures, said = run(pairs)
    assert total == [1.0] * len(pairs) and figures["reward/math/failed"] == 0 and not said
    wrong = [(r"\boxed{x^3}", "x^2"), ("2", "x^2"), ("18, or 19", "18"), ("", "3"), ("three", "3"),
             (r"\boxed{(2,1)}", "(1,2)"), (r"<answer>19</answer> 18", "18")]
    assert run(wrong)[0] == [0.0] * len(wrong)
    assert not caplog.records  # it would warn that its own timeouts are off


@installed
def test_an_answer_it_cannot_read_and_a_number_without_end_cost_their_rows():
    began = time.monotonic()
    total, figures, said = run([("3", ""), (r"\boxed{9^{9^{9^{9}}}}", "5"), ("5", "5"), (r"\boxed{100000000!}", "5")],
                               timeout=1.0)
    assert total == [0.0, 0.0, 1.0, 0.0] and figures["reward/math/failed"] == 3.0
    assert len(said) == 2 and "cannot read the expected answer ''" in said[0] and "no result within 1 s" in said[1]
    assert time.monotonic() - began < 20


def test_without_the_extra_it_names_the_extra_before_anything_runs(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[math\]'"):
        Rewards([dict(name="math")], REWARDS)
