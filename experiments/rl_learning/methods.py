"""The methods that are compared, each as a config of jaxalign's own stages."""

from jaxalign.stages import default_config
from jaxalign.stages.grpo import GRPO_FAMILY

# -- reinforcement learning: the same sums, start, responses a rollout, rate -------------------------------------------

ROLLOUTS, RESPONSES, GROUP, EPOCHS = 20, 64, 8, 2

SUMS = dict(
    length=48, max_new_tokens=48, batch_size=RESPONSES, epochs=EPOCHS, steps=ROLLOUTS * EPOCHS, fold_rows=28,
    log_every=EPOCHS, checkpoint_every=5 * EPOCHS, rewards=[dict(name="numeric", weight=1.0)], preview=False,
    optimizer=dict(peak_lr=4e-4, schedule="linear", warmup_steps=6, end_fraction=0.1))
GROUPS = dict(prompts_per_rollout=RESPONSES // GROUP, samples_per_prompt=GROUP)
# The gradient of `reinforce` is right for one step a rollout: half the steps of the others.
ONE_STEP = dict(epochs=1, steps=ROLLOUTS, log_every=1, optimizer=dict(warmup_steps=3))

REINFORCEMENT = {
    # Other than the group methods': a response to each of 64 prompts, a critic, whose transformer starts as the policy's.
    # For the first two rollouts it learns alone.
    "ppo": ("ppo", dict(SUMS, prompts_per_rollout=RESPONSES, samples_per_prompt=1, critic_from="policy",
                        critic_warmup=2 * EPOCHS, kl_coefficient=0.01, unfinished_penalty=1.0)),
    "grpo": ("grpo", GRPO_FAMILY["grpo"]),
    "dr_grpo": ("grpo", GRPO_FAMILY["dr_grpo"]),
    "dapo": ("grpo", GRPO_FAMILY["dapo"]),
    "gspo": ("grpo", GRPO_FAMILY["gspo"]),
    "rloo": ("grpo", dict(GRPO_FAMILY["rloo"], **ONE_STEP)),
    "grpo_overlap": ("grpo", dict(GRPO_FAMILY["grpo"], overlap=True)),
}

# -- preferences: the same rankings, start, pairs, rate ----------------------------------------------------------------

PAIRS = dict(
    length=64, batch_size=16, steps=100, fold_rows=11, log_every=10, checkpoint_every=20, keep=5, preview=False,
    optimizer=dict(peak_lr=6e-4, schedule="linear", warmup_steps=10, end_fraction=0.02))

PREFERENCES = {
    "dpo": dict(name="dpo", beta=0.3, smoothing=0.0, nll_coefficient=0.0),
    "ipo": dict(name="ipo", beta=0.3),
    "kto": dict(name="kto", beta=0.3),
    "orpo": dict(name="orpo", odds_coefficient=1.0),
    "simpo": dict(name="simpo", beta=2.0, target_margin=1.0),
}


def config_of(method, start, seed, changes=None):
    """The config of one run.

    Args:
      method: a key of `REINFORCEMENT` or `PREFERENCES`.
      start: folder of a finished quickstart, whose SFT model all runs start from.
      seed: of the run: the order of the data, what is drawn, a fresh critic's head.
      changes: settings that override, nested groups key by key; those a stage does not have are left out.
    """
    if method in REINFORCEMENT:
        stage, settings = REINFORCEMENT[method]
        made = default_config(stage)
        if stage == "grpo":
            made.update(dict(SUMS, **GROUPS))
        made.update(settings)
        made.data.train = [dict(path=str(start / "world" / "grpo.train.jsonl"), shape="prompts")]
    else:
        made = default_config("dpo")
        made.update(PAIRS)
        made.data.train = [dict(path=str(start / "candidates" / "rankings.train.jsonl"), shape="rankings")]
        if method == "kto":  # single answers: as many as the others' pairs have
            made.batch_size *= 2
        with made.unlocked():
            made.objective = PREFERENCES[method]
    made.update(dict(init_from=str(start / "sft"), seed=seed))
    made.update({key: value for key, value in (changes or {}).items() if key in made})
    return made
