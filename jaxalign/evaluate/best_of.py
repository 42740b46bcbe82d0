"""Best of n: the policy that draws several answers and gives the one that a reward model likes best."""

import math

import numpy as np

from jaxalign.data.chat import render
from jaxalign.evaluate.statistics import bootstrap_mean


class BestOf:
    """An assistant that answers with the best of n draws (WebGPT's rejection sampling, Nakano et al. 2021,
    arXiv:2112.09332; the KL as an equality: Stiennon et al. 2020, arXiv:2009.01325, appendix G.3; that it is a bound:
    Beirami et al. 2024, arXiv:2401.01879).

        y = argmax r(x, yᵢ)  over  y₁ … yₙ ~ π(·|x)        KL(best of n ‖ π) ≤ log n − (n − 1)/n  nats

    No parameter is trained: what a policy trained by reinforcement on the same reward model must beat, at the same KL.
    A draw that was cut is taken only where all n were: what a reward model makes of half an answer is no score.

    Args:
      assistant: an `Assistant`.
      reward_model: a `RewardModel`, of any tokenizer; it reads text.
      n: draws a prompt, ≥ 1; 1 is the policy itself.
      temperature: of the draws.
    """

    def __init__(self, assistant, reward_model, *, n, temperature=1.0):
        self.assistant, self.reward_model, self.n, self.temperature = assistant, reward_model, n, temperature
        self.tokenizer = assistant.tokenizer
        self.scores, self.picks = [], []  # of every prompt since `figures`: the n draws' scores, which was taken

    def answers(self, conversations, *, seed=0):
        """(text, whether it ended by itself) of the next turn in each conversation: two lists."""
        repeated = [messages for messages in conversations for _ in range(self.n)]
        prompts = [render(messages, self.tokenizer, add_generation_prompt=True)[0] for messages in repeated]
        rollouts = self.assistant.generate(prompts, seed=seed, temperature=self.temperature)
        texts = [self.tokenizer.decode(rollouts.ids(k)).strip() for k in range(len(prompts))]
        score_BN = np.asarray(self.reward_model.score_responses(repeated, texts), np.float64).reshape(-1, self.n)
        ended_BN = np.asarray(rollouts.finished).reshape(-1, self.n)
        pick_B = best(score_BN, ended_BN)
        self.scores += list(score_BN)
        self.picks += pick_B.tolist()
        taken = [b * self.n + int(pick) for b, pick in enumerate(pick_B)]
        return [texts[k] for k in taken], [bool(rollouts.finished[k]) for k in taken]

    def figures(self):
        """{"score": {"best", "drawn"}, "kl_bound"} of what was answered since the last call: the reward model's mean
        score of the answers taken and of all draws, intervals bootstrapped by prompt; the most KL it costs, nats."""
        score_BN, pick_B = np.array(self.scores), np.array(self.picks)
        self.scores, self.picks = [], []
        values = {"best": np.take_along_axis(score_BN, pick_B[:, None], axis=1)[:, 0], "drawn": score_BN.mean(1)}
        means = {name: bootstrap_mean(column.tolist()) for name, column in values.items()}
        return {"score": {name: {"value": value, "n": len(pick_B), "ci95": (low, high)}
                          for name, (value, low, high) in means.items()},
                "kl_bound": {"value": kl_bound(self.n), "n": self.n}}


def best(score_BN, ended_BN):
    """The number of each row's best draw: of those that ended, or of all where none did; of equals the first."""
    counts_BN = ended_BN | ~ended_BN.any(axis=1, keepdims=True)
    return np.argmax(np.where(counts_BN, score_BN, -np.inf), axis=1)


def kl_bound(n):
    """log n − (n − 1)/n, nats: the most that KL(best of n ‖ one draw) can be (arXiv:2401.01879)."""
    return math.log(n) - (n - 1) / n
