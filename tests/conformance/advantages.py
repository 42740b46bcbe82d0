"""Advantages: what the policies' losses take as given, so without gradients.

TRL and verl divide by the sample's standard deviation, with n − 1, ours by the population's: where both are compared,
ours is first multiplied by √((n − 1) / n).
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
import rlax
from verl.trainer.config import AlgoConfig
from verl.trainer.ppo import core_algos as verl
from verl.utils.torch_functional import masked_whiten

import policies
import ragged
import trainers
from comparison import Row
from jaxalign.experience.adaptive import adapted_coefficient
from jaxalign.experience.shaping import group_targets
from jaxalign.objectives.advantages import gae, group_relative, leave_one_out, whiten
from policies import GROUP_SIZE, ROLLOUT
from tokens import Tokens

DISCOUNT, LAMBDA = 0.95, 0.9


def gae_of_rlax(draw):
    """rlax takes one sequence: here a response's own tokens, what is not its own left out."""
    tokens = Tokens(draw)
    theirs_BT = np.zeros_like(tokens.mask_BT)
    for row, kept in enumerate(tokens.mask_BT > 0):
        theirs_BT[row, kept] = rlax.truncated_generalized_advantage_estimation(
            jnp.asarray(tokens.reward_BT[row, kept]), jnp.full(kept.sum(), DISCOUNT), LAMBDA,
            jnp.append(tokens.value_BT[row, kept], 0.0),
        )
    ours_BT, returns_BT = _gae(tokens)
    returns = {"returns": returns_BT * tokens.mask_BT}, {"returns": (theirs_BT + tokens.value_BT) * tokens.mask_BT}
    return {"advantage": ours_BT} | returns[0], {"advantage": theirs_BT} | returns[1]


def gae_of_verl(draw):
    """verl's steps over a tool's tokens as ours does, and comes whitened."""
    tokens = Tokens(draw)
    given = (tokens.torch(name) for name in ("reward_BT", "value_BT", "mask_BT"))
    theirs_BT, their_returns_BT = (
        x.numpy() * tokens.mask_BT for x in verl.compute_gae_advantage_return(*given, DISCOUNT, LAMBDA)
    )
    ours_BT, our_returns_BT = _gae(tokens)
    ours_BT = whiten(ours_BT, tokens.mask_BT) * sample_over_population(tokens.mask_BT.sum())
    return {"whitened advantage": ours_BT, "returns": our_returns_BT * tokens.mask_BT}, {
        "whitened advantage": theirs_BT, "returns": their_returns_BT,
    }


def _gae(tokens):
    given = jnp.asarray(tokens.reward_BT), jnp.asarray(tokens.value_BT), jnp.asarray(tokens.mask_BT)
    return gae(*given, discount=DISCOUNT, gae_lambda=LAMBDA)


def whitened(draw, *, shift_mean):
    tokens = Tokens(draw)
    mask_BT = tokens.mask_BT
    mean = 0.0 if shift_mean else np.sum(tokens.value_BT * mask_BT) / mask_BT.sum()
    ours_BT = whiten(jnp.asarray(tokens.value_BT), jnp.asarray(mask_BT), shift_mean=shift_mean) - mean
    theirs_BT = masked_whiten(tokens.torch("value_BT"), tokens.torch("mask_BT"), shift_mean=shift_mean).numpy() - mean
    return {"value": ours_BT * sample_over_population(mask_BT.sum()) * mask_BT}, {"value": theirs_BT * mask_BT}


def of_trl(draw, *, ours, theirs):
    """What a trainer of TRL's makes of a rollout's rewards."""
    rows, reward_B = ragged.rows(draw, ROLLOUT, left=True), _rewards(draw)
    policy = {"hidden_BSD": ragged.hidden(draw, rows), "unembed_DV": ragged.unembed(draw)}
    batch = policies.played(theirs(), rows, reward_B, policy, policy, rows.mask_BT)
    return {"value": ours(reward_B, rows.mask_BT)}, {"value": batch["advantages"].numpy()}


def of_verl(draw, *, ours, theirs):
    """verl takes the reward on any of a response's tokens, and gives the advantage on each of them."""
    rows, reward_B = ragged.rows(draw, ROLLOUT), _rewards(draw)
    reward_BT = np.zeros_like(rows.mask_BT)
    reward_BT[np.arange(ROLLOUT), rows.mask_BT.argmax(axis=1)] = reward_B
    prompts = np.arange(ROLLOUT) // GROUP_SIZE
    theirs_BT, _ = theirs(trainers.tensor(reward_BT), trainers.tensor(rows.mask_BT), prompts)
    ours_BT = np.broadcast_to(ours(reward_B, rows.mask_BT).T, rows.mask_BT.T.shape).T  # of responses, or of tokens
    return {"value": ours_BT * rows.mask_BT}, {"value": theirs_BT.numpy()}


def _rewards(draw):
    return draw.normal(size=ROLLOUT).astype(np.float32)


def group(reward_B, mask_BT, *, scale, added=0.0):
    """Ours; with scale "std" as theirs has it, over the sample's deviation and what they add to it."""
    advantage_B = group_relative(jnp.asarray(reward_B), group_size=GROUP_SIZE, scale=scale)
    if scale == "none":
        return advantage_B
    std_B = np.repeat(reward_B.reshape(-1, GROUP_SIZE).std(axis=1, ddof=1), GROUP_SIZE)
    return advantage_B * sample_over_population(GROUP_SIZE) * std_B / (std_B + added)


def others(reward_B, mask_BT):
    return leave_one_out(jnp.asarray(reward_B), group_size=GROUP_SIZE)


def centred_and_whitened(reward_B, mask_BT):
    targets = group_targets(
        jnp.asarray(reward_B), jnp.asarray(mask_BT), group_size=GROUP_SIZE, baseline="group", scale="batch"
    )
    return targets["advantage_BT"] * sample_over_population(mask_BT.sum())


def reinforce_plus_plus(draw):
    """A reward at the end, a cost at every token, and gaps; verl takes the two as one reward per token."""
    tokens, reward_B = Tokens(draw), draw.normal(size=6).astype(np.float32)
    mask_BT, cost_BT = tokens.mask_BT, 0.1 * (tokens.logp_BT - tokens.ref_logp_BT)
    ours_BT = group_targets(
        jnp.asarray(reward_B), jnp.asarray(mask_BT), jnp.asarray(cost_BT), group_size=1, baseline="none", scale="batch"
    )["advantage_BT"]
    reward_BT = -cost_BT * mask_BT
    last_B = mask_BT.shape[1] - 1 - np.flip(mask_BT, axis=1).argmax(axis=1)
    reward_BT[np.arange(6), last_B] += reward_B
    theirs_BT, _ = verl.compute_reinforce_plus_plus_outcome_advantage(
        trainers.tensor(reward_BT), tokens.torch("mask_BT"), AlgoConfig(gamma=1.0)
    )
    return {"value": ours_BT * sample_over_population(mask_BT.sum())}, {"value": theirs_BT.numpy()}


def controlled(draw):
    """The coefficient over twenty rollouts; what verl calls the horizon is the responses of a rollout over the gain."""
    kls, controller = draw.uniform(0.0, 12.0, size=20), verl.AdaptiveKLController(0.2, target_kl=6.0, horizon=640)
    ours, theirs = [0.2], [0.2]
    for kl in kls:
        ours.append(adapted_coefficient(ours[-1], float(kl), target=6.0, gain=64 / 640))
        controller.update(kl, 64)
        theirs.append(controller.value)
    return {"value": np.array(ours)}, {"value": np.array(theirs)}


def sample_over_population(count):
    """What turns x / σ of the population into x / σ of the sample: √((n − 1) / n)."""
    return np.sqrt((count - 1) / count)


PART = functools.partial

ROWS = [
    Row("gae", "rlax truncated_generalized_advantage_estimation", gae_of_rlax),
    Row("gae: with whiten", "verl compute_gae_advantage_return", gae_of_verl),
    Row("whiten", "verl masked_whiten", PART(whitened, shift_mean=True)),
    Row("whiten: shift_mean False", "verl masked_whiten, shift_mean False", PART(whitened, shift_mean=False)),
    Row("group_relative: scale none", "trl GRPOTrainer, scale_rewards none",
        PART(of_trl, ours=PART(group, scale="none"), theirs=PART(policies.trl_grpo, loss_type="grpo", beta=0.0))),
    Row("group_relative: scale std", "trl GRPOTrainer, scale_rewards group",
        PART(of_trl, ours=PART(group, scale="std", added=1e-4),
             theirs=PART(policies.trl_grpo, loss_type="grpo", beta=0.0, scale_rewards="group"))),
    Row("group_relative: scale std", "verl compute_grpo_outcome_advantage",
        PART(of_verl, ours=PART(group, scale="std", added=1e-6), theirs=verl.compute_grpo_outcome_advantage)),
    Row("adapted_coefficient", "verl AdaptiveKLController", controlled),
    Row("leave_one_out", "trl RLOOTrainer", PART(of_trl, ours=others, theirs=policies.trl_rloo)),
    Row("leave_one_out", "verl compute_rloo_outcome_advantage",
        PART(of_verl, ours=others, theirs=verl.compute_rloo_outcome_advantage)),
    Row("group_targets: baseline none, scale batch, KL (REINFORCE++)",
        "verl compute_reinforce_plus_plus_outcome_advantage", reinforce_plus_plus),
    Row("group_targets: baseline group, scale batch (REINFORCE++ with a baseline)",
        "verl compute_reinforce_plus_plus_baseline_outcome_advantage",
        PART(of_verl, ours=centred_and_whitened, theirs=verl.compute_reinforce_plus_plus_baseline_outcome_advantage)),
]
