"""Best of n: which draw is taken, what is said of it, and what it costs in KL."""

import json
import math
import types

import numpy as np
import pytest
import tiny_stages

from jaxalign.cli import main
from jaxalign.data.tokenizer import Tokenizer
from jaxalign.errors import ConfigError
from jaxalign.evaluate import evaluate_checkpoint
from jaxalign.evaluate.best_of import BestOf, best, kl_bound


def asked(*texts):
    return [[{"role": "user", "content": text}] for text in texts]


class Scripted:
    """Stands for an assistant: its draws in order, some of which never end."""

    def __init__(self, texts, ended):
        self.tokenizer, self.texts, self.ended = Tokenizer.load(tiny_stages.TOKENIZER), texts, ended

    def generate(self, prompts, *, seed, temperature):
        self.asked, self.temperature = [self.tokenizer.decode(prompt) for prompt in prompts], temperature
        ids = [self.tokenizer.encode(text) for text in self.texts]
        return types.SimpleNamespace(finished=np.array(self.ended), ids=lambda n: ids[n])


class ByLength:
    """Stands for a reward model that likes what is long, and is told which answer is to which question."""

    def score_responses(self, conversations, responses):
        self.seen = [(messages[-1]["content"], text) for messages, text in zip(conversations, responses, strict=True)]
        return np.array([len(text) for text in responses], np.float32)


def test_the_best_draw_of_each_prompt_is_the_answer():
    texts = ["a", "a fox", "a river", "yes", "no, it is", "no"]
    assistant, judge = Scripted(texts, [True, True, False, False, False, False]), ByLength()
    model = BestOf(assistant, judge, n=3, temperature=0.7)
    # The longest of the first three was cut, two others were not; of the others all were.
    assert model.answers(asked("What?", "Is it?")) == (["a fox", "no, it is"], [True, False])
    assert assistant.temperature == 0.7 and len(assistant.asked) == 6
    assert judge.seen == list(zip(["What?"] * 3 + ["Is it?"] * 3, texts))
    figures = model.figures()
    assert figures["score"]["best"]["value"] == pytest.approx((5 + 9) / 2) and figures["score"]["best"]["n"] == 2
    assert figures["score"]["drawn"]["value"] == pytest.approx(np.mean([1, 5, 7, 3, 9, 2]))
    assert figures["kl_bound"] == {"value": math.log(3) - 2 / 3, "n": 3} and model.scores == []


def test_of_equals_the_first_is_taken_and_a_cut_one_only_where_all_are():
    score = np.array([[1.0, 2.0, 2.0], [3.0, 1.0, 2.0], [3.0, 1.0, 2.0]])
    ended = np.array([[True, True, True], [False, True, True], [False, False, False]])
    assert best(score, ended).tolist() == [1, 2, 0]


@pytest.mark.parametrize("n", [1, 2, 4, 16])
def test_the_kl_of_the_best_of_n_stays_below_its_bound_and_comes_near_it(n):
    """Of a policy over many answers whose scores all differ: P(best = k) = F(k)ⁿ − F(k − 1)ⁿ."""
    p = np.random.default_rng(n).dirichlet(np.ones(4000))
    upto = np.cumsum(p)
    q = upto ** n - (upto - p) ** n
    kl = float(np.sum(q * np.log(np.maximum(q, 1e-300) / p)))
    assert kl <= kl_bound(n) + 1e-9 and kl == pytest.approx(kl_bound(n), abs=5e-3)
    assert kl_bound(1) == 0


def test_a_checkpoint_is_measured_with_the_best_of_its_draws(tmp_path, capsys):
    policy, reward = tiny_stages.trained("sft"), tiny_stages.trained("reward")
    source = f"{tiny_stages.data()['prompts']['path']}:prompts"
    options = dict(reward_model=reward, max_new_tokens=4, batch_size=8, limit=6)
    one = evaluate_checkpoint(policy, source, options | dict(best_of=1))[source]
    many = evaluate_checkpoint(policy, source, options | dict(best_of=8))[source]
    assert one["score"]["best"] == one["score"]["drawn"] and one["kl_bound"]["value"] == 0
    assert many["score"]["best"]["n"] == many["numeric_match"]["n"] == 6
    assert {"refused", "exact_match", "numeric_match", "answers_ended", "score", "kl_bound"} == set(many)
    written = tmp_path / "figures.json"
    assert main(["evaluate", f"--checkpoint={policy}", source, "--best_of=8", f"--reward_model={reward}", "--limit=6",
                 "--max_new_tokens=4", "--batch_size=8", f"--json={written}"]) == 0
    assert json.loads(written.read_text())[source] == json.loads(json.dumps(many))
    assert "score · best" in capsys.readouterr().out


def test_prompts_that_nothing_is_known_of_have_their_score(tmp_path):
    path = tiny_stages.jsonl(tmp_path / "bare.jsonl", [{"prompt": "What?"}, {"prompt": "Who?"}])
    figures = evaluate_checkpoint(tiny_stages.trained("sft"), f"{path}:prompts", dict(
        best_of=2, reward_model=tiny_stages.trained("reward"), max_new_tokens=2, batch_size=4))[f"{path}:prompts"]
    assert figures["score"]["best"]["value"] >= figures["score"]["drawn"]["value"]
    assert figures["score"]["best"]["n"] == 2


def test_conversations_and_rankings_are_answered_with_the_best_where_asked_for():
    sources = [f"{tiny_stages.data()[shape]['path']}:{shape}" for shape in ("messages", "rankings")]
    options = dict(best_of=2, reward_model=tiny_stages.trained("reward"), max_new_tokens=2, batch_size=4, limit=3)
    made = evaluate_checkpoint(tiny_stages.trained("sft"), sources, options | dict(answers=True))
    for figures in made.values():  # of each source alone, and nothing of what is only read
        assert figures["numeric_match"]["n"] == figures["score"]["best"]["n"] == 3 and "bits_per_byte" not in figures
    with pytest.raises(ConfigError, match="messages: best_of=2 chooses among answers, and here is nothing to answer"):
        evaluate_checkpoint(tiny_stages.trained("sft"), sources[0], options)


@pytest.mark.parametrize(("checkpoint", "shape", "options", "words"), [
    ("sft", "prompts", dict(best_of=4), "best_of=4 and reward_model=None go together"),
    ("sft", "prompts", dict(reward_model="x"), "best_of=None and reward_model=x go together"),
    ("sft", "prompts", dict(best_of=0, reward_model="x"), "best_of=0; expected 1 or more"),
    ("sft", "prompts", dict(temperature=0.5), "temperature=0.5 is of the answers that best_of draws"),
    ("sft", "text", dict(best_of=2, reward_model="reward"), "here is nothing to answer; evaluate it on prompts"),
    ("sft", "rankings", dict(best_of=2, reward_model="reward"), "here is nothing to answer"),
    ("reward", "rankings", dict(best_of=2, reward_model="reward"), "is a reward model, which writes none"),
])
def test_what_does_not_go_together_is_refused(checkpoint, shape, options, words):
    if options.get("reward_model") == "reward":
        options = options | dict(reward_model=tiny_stages.trained("reward"))
    with pytest.raises(ConfigError, match=words):
        evaluate_checkpoint(tiny_stages.trained(checkpoint), f"{tiny_stages.data()[shape]['path']}:{shape}", options)
