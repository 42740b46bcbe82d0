"""What the stages share whose batches are drawn from the policy they train."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from jaxalign.data.preview import preview_row
from jaxalign.errors import ConfigError
from jaxalign.evaluate.preferences import RewardModel
from jaxalign.experience.figures import drift_figures
from jaxalign.experience.rows import Drawn, minibatches, response_rows
from jaxalign.rewards import REWARDS
from jaxalign.rewards.run import Rewards, check_rewards
from jaxalign.rollout.engine import Sampler
from jaxalign.rollout.sampling import Settings
from jaxalign.sharding import put_batch
from jaxalign.stages.stage import Stage

ROW_BUCKET = 32  # positions
GIVEN = {"load_reward_model": RewardModel.load}  # what rewards with something to prepare may ask for

RL_DEFAULTS = dict(
    batch_size=64,  # responses an optimizer step: a minibatch of the rollout
    prompts_per_rollout=64,
    samples_per_prompt=1,
    epochs=1,  # passes over each rollout
    target_kl=0.0,  # nats a token: once a step's `approx_kl` is above, the rollout's other steps are left out; 0: never
    length=64,  # the prompt's budget in tokens; longer ones lose their oldest tokens
    max_new_tokens=48,
    temperature=1.0,  # neither top-k nor top-p: the ratio of two policies is of what both can draw
    sampler_precision="model",  # or "bfloat16", "int8" weights to draw with; objective.sampler_correction corrects that
    rewards=[],  # what an entry holds: rewards/run.py
    reward_kinds=[],  # only rows of these kinds are rewarded; empty: all
    overlap=False,  # whether a rollout is drawn while the one before is trained on, hence by the weights before that
)


class PolicyStage(Stage):
    """A stage that samples from its policy, rewards what it drew, and trains on that, in one step or several.

    With `config.overlap` it is one rollout off the policy: rollout n is drawn, and all that is computed of it (π_old,
    values, advantages) is computed, with the weights that rollout n − 1 began to be trained from, so that nothing of it
    waits for that training. π/π_old is the ratio to what drew the tokens, and no longer 1 at a rollout's first step.

        θ₀ draws 0 and 1;  θₙ₊₁ = θₙ after the steps on rollout n;  θₙ draws n + 1
    """

    beside = None  # with `overlap`, the weights that draw the next rollout
    key = None  # of the run, once it is known: with `overlap` the state's own is there only when its step is over
    reward = None  # what judges the responses' text, if anything does
    all_cut = False  # whether no response of the rollout before came to its end
    all_alike = False  # whether nothing in the rewards of the rollout before told its responses apart
    shown = False  # whether a response was shown with its mask

    def __init__(self, config, workdir, mesh):
        super().__init__(config, workdir, mesh)
        c = config
        # At the template's own end alone, which is to be learned: what would end otherwise goes on. Chat and `evaluate`, which take a
        # policy as it is, stop there too.
        self.sampler = Sampler(self.network.adapted, stop_ids=(self.tokenizer.end_id,), max_new_tokens=c.max_new_tokens,
                               slots=c.prompts_per_rollout * c.samples_per_prompt, pad_id=self.tokenizer.pad_id,
                               precision=c.sampler_precision, mesh=mesh)
        # Numbers by name that go over from rollout to rollout; in the checkpoint they stand beside the data's position.
        self.carried = {"updates_skipped": 0} if c.target_kl else {}
        self.left = 0  # optimizer steps that the rollout still holds
        self.tail = ()  # ids behind a response that has ended, which a reward model was trained to read
        self._targets = jax.jit(
            lambda trainable, frozen, *more: self.targets(self.whole(trainable, frozen), frozen, *more))

    @classmethod
    def check(cls, config):
        if jax.process_count() > 1:
            # Rollouts are turned into batches on the host, which sees its own devices' rows only.
            raise ConfigError(f"{cls.name}: draws its samples in one process, JAX runs in {jax.process_count()}; train "
                              "it on one host, whose devices all take part, and the supervised stages on several")
        super().check(config)
        if config.data.dev:
            raise ConfigError(f"{cls.name}: config.data.dev is not read by a stage that draws its samples, whose "
                              "figures are those of its rollouts; leave it empty, and measure the checkpoint with "
                              "jaxalign evaluate")
        if config.temperature <= 0:
            raise ConfigError(f"temperature={config.temperature} must be above 0: what is always the same teaches "
                              "nothing")
        rows = config.prompts_per_rollout * config.samples_per_prompt
        if rows % config.batch_size:
            raise ConfigError(f"batch_size={config.batch_size} must divide prompts_per_rollout × samples_per_prompt = "
                              f"{rows}")
        if config.lora.dropout:
            raise ConfigError(f"{cls.name}: config.lora.dropout={config.lora.dropout} must be 0: the policy that draws "
                              "would not be the one whose step is taken")
        if config.rewards or not config.get("reward_model"):
            check_rewards(config.rewards, REWARDS, GIVEN)

    @classmethod
    def kind_of(cls, objective):
        return "prompts"

    def _row_length(self, prompts, rollouts):
        """As short as the longest row allows, in steps of `ROW_BUCKET`: each length is compiled once. Where rows are
        packed for the model, what is left to do for each position costs nothing, and one length serves all."""
        if self.config.fold:
            return -(-(self.config.length + self.config.max_new_tokens + len(self.tail)) // ROW_BUCKET) * ROW_BUCKET
        longest = max(len(prompt) + int(mask.sum()) for prompt, mask in zip(prompts, rollouts.mask)) + len(self.tail)
        return -(-longest // ROW_BUCKET) * ROW_BUCKET

    def rows_per_batch(self):
        return self.config.prompts_per_rollout

    def start(self, trainable):
        trainable = super().start(trainable)
        if self.config.sampler_precision != "model" and self.config.objective.sampler_correction == "none":
            self.warn(f"sampler_precision={self.config.sampler_precision!r} draws from another distribution than the one trained, "
                      "and nothing corrects that: set objective.sampler_correction=\"token\"")
        if self.refers:
            self.frozen |= {"reference": self.as_it_starts(trainable["policy"])}
        return trainable

    @property
    def refers(self):
        """Whether anything asks for the reference's log-probabilities."""
        return True

    @property
    def waits(self):
        return not self.config.overlap

    def next_batches(self, state):
        if self.config.overlap:
            if self.key is None:
                self.key = jax.random.wrap_key_data(np.asarray(jax.random.key_data(state.key)))
            # Copied on the device before the next step takes over their memory: nothing here waits for the last one.
            behind, self.beside = self.beside, jax.tree.map(jnp.copy, state.trainable)
            state = dataclasses.replace(state, key=self.key, trainable=state.trainable if behind is None else behind)
        return self.rollout(state)

    def rollout(self, state):
        """`next_batches`, drawn by the state's own weights."""
        c = self.config
        drawn, parts = self.collect(state)
        rollouts = drawn.rollouts
        batch = response_rows(drawn.prompts, rollouts, self._row_length(drawn.prompts, rollouts), self.tokenizer.pad_id, self.tail)
        batch["mask_BT"] *= drawn.counts_B[:, None]
        batch["finished_B"], batch["reward_B"] = rollouts.finished.astype(np.float32), drawn.reward_B
        batch["scored_B"] = self.scored(drawn.rows).astype(np.float32)
        with jax.set_mesh(self.mesh):
            placed = put_batch(self.folded(batch), self.mesh)
            made, figures = self._targets(state.trainable, self.frozen, placed, self.carried)
        if self.config.preview and not self.shown:
            self._show(batch)
        batch |= {name: np.asarray(value) for name, value in made.items()}
        figures = {name: float(value) for name, value in figures.items()} | parts
        self._watch_ends(figures["truncated"] == 1.0)
        figures |= drift_figures(batch) | self.carry_on(batch, figures)
        parts = minibatches(batch, batch_size=c.batch_size, epochs=c.epochs, seed=(c.seed, int(state.step)))
        self.left = len(parts)
        return [self.folded(part) for part in parts], figures

    def carry_on(self, batch, figures):
        """Sets `carried` for the next rollout by what this one was; returns more figures to log."""
        return {name: float(self.carried[name]) for name in ("updates_skipped",) if name in self.carried}

    def enough(self, metrics):
        """The target-KL stop: whether the rollout's other steps are left out, once a step's `approx_kl` is above it.

        `approx_kl` is of the policy before that step's update, and by the time it is read the update has been made: it
        is kept, as the rollout's last. CleanRL keeps it too, but looks once an epoch, not at every step. Spinning Up,
        Stable-Baselines3 and TRL's former PPO trainer look before the update and leave it out, at 1.5 × the target: to
        stop where they do, give 1.5 times theirs, and expect one update more.
        """
        self.left -= 1
        if not self.config.target_kl:
            return False
        if "approx_kl" not in metrics:
            raise ConfigError(f"{self.name}: config.target_kl={self.config.target_kl} needs an objective with a metric "
                              f"approx_kl, {self.config.objective.name!r} has: {', '.join(metrics)}; set it to 0")
        # Negated, so that NaN stops too.
        beyond = not float(metrics["approx_kl"]) <= self.config.target_kl
        self.carried["updates_skipped"] += self.left * beyond
        return beyond

    def data_state(self):
        position = super().data_state()
        return {"position": position, "carried": dict(self.carried)} if self.carried else position

    def set_data_state(self, state):
        if "carried" in state:
            self.carried |= {name: value for name, value in state["carried"].items() if name in self.carried}
            state = state["position"]
        super().set_data_state(state)

    def collect(self, state):
        """(`Drawn`, figures): the responses to learn from at this step."""
        return self.draw(state, jax.random.fold_in(state.key, state.step))

    def draw(self, state, key):
        """One rollout: the next prompts, their responses under the current policy, what these earn."""
        rows, prompts = self._prompts(next(self.train_data), self.config.samples_per_prompt)
        policy = self.whole(state.trainable, self.frozen)["policy"]
        rollouts = self.sampler(policy, prompts, jax.random.split(key, len(prompts)), Settings(self.config.temperature))
        responses = [self.tokenizer.decode(rollouts.ids(n)) for n in range(len(prompts))]
        reward_B, figures = self.rewards(rows, responses)
        figures = figures | {"drawn_tokens": float(rollouts.mask.sum()), "length": float(rollouts.mask.sum(1).mean()),
                             "truncated": 1.0 - float(rollouts.finished.mean())}
        return Drawn(rows, prompts, rollouts, reward_B, np.ones(len(prompts), np.float32)), figures

    def statistics(self, policy, batch):
        """Of the distribution that is sampled from: the ratio of two temperatures would not be 1 for equal policies."""
        return super().statistics(policy, batch, temperature=self.config.temperature)

    def verifiers(self):
        """The rewards that the config names, which judge the responses' text."""
        return Rewards(self.config.rewards, REWARDS, GIVEN)

    def rewards(self, rows, responses):
        """(reward_B float32, figures): what can be said of the responses' text alone."""
        return self.reward(rows, responses, self._asked(rows), self.warn)

    def scored(self, rows):
        """Which rows earn a reward at all: those of the kinds that are rewarded which have the answer that all rewards need, if
        they do."""
        lacking = self.reward is not None and self.reward.needs_answer
        return self._asked(rows) & np.array([not lacking or row["answer"] is not None for row in rows])

    def _asked(self, rows):
        """Which rows are of the kinds that are rewarded."""
        kinds = set(self.config.reward_kinds)
        return np.array([not kinds or row.get("kind") in kinds for row in rows])

    def targets(self, trainable, frozen, batch, carried=None):
        """(arrays the objective needs beside the batch's own, figures)."""
        raise NotImplementedError

    def sampler_figures(self, logp_BT, batch):
        """How far the sampler's log-probabilities are from the trainer's: k3 of KL(sampler ‖ trainer), nats a token."""
        difference = (logp_BT - batch["sampler_logp_BT"]) * batch["mask_BT"]
        return {"sampler_kl": masked_mean(jnp.expm1(difference) - difference, batch["mask_BT"])}

    def evaluate(self, state):
        return {}

    def _show(self, batch):
        """One response after its prompt, with what counts of it: at the start there was the prompt alone."""
        row = int(batch["mask_BT"].any(1).argmax())
        preview_row(*(batch[name][row] for name in ("tokens_BT", "mask_BT")), self.tokenizer, Console(),
                    targets=batch["targets_BT"][row])
        self.shown = True

    def _watch_ends(self, all_cut):
        # Said when it sets in only: a run that stays there would bury its other lines.
        if all_cut and not self.all_cut:
            self.warn(f"all responses that were drawn were cut at max_new_tokens={self.config.max_new_tokens}, so "
                      "none has an answer that counts; raise it, or start from a policy that ends its turns")
        self.all_cut = all_cut

    def watch_spread(self, alike, words):
        """Warns, when it sets in, that rewards are so alike that there is nothing to learn from."""
        if alike and not self.all_alike:
            self.warn(words)
        self.all_alike = alike

    def _prompts(self, batch, copies):
        rows, prompts = [], []
        for row, ids, length in zip(batch["rows"], batch["tokens_BP"], batch["length_B"]):
            prompt = [int(i) for i in ids[len(ids) - int(length):]]
            rows += [row] * copies
            prompts += [prompt] * copies
        return rows, prompts


def masked_mean(x, mask):
    """Mean over the entries that count."""
    return jnp.sum(x * mask) / jnp.maximum(jnp.sum(mask), 1.0)
