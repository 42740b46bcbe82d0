"""What each part trains: its config, from where it starts and on which data."""

import os
import pathlib

from jaxalign.stages import default_config

DATA = pathlib.Path(os.environ.get("JAXALIGN_SHARED_DATA") or pathlib.Path(__file__).resolve().parents[3] / "shared" / "data")
SUMS = dict(min_terms=2, max_terms=2, min_digits=1, max_digits=2)
SYSTEM = "Answer with the number alone."  # of the sums: shorter than the message that the model's template has by default
TALK = {"alpaca_en_demo.json": "alpaca", "rasbt_instruction_data.json": "alpaca", "gpteacher_roleplay.json": "alpaca",
        "topical_chat.valid_freq.jsonl": "messages", "dolly_sample.jsonl": "prompt_response"}


def base(stage, start, peak_lr, **changes):
    """A stage's defaults from `start`: rank 16 on every linear map, layers made again in the backward pass.

    Products in float32: twice as fast as bfloat16 on a processor that has none of 16 bits.
    """
    config = default_config(stage)
    config.update(dict(init_from=str(start), preview=False, log_every=1, eval_batches=0))
    config.lora.rank = 16
    config.model.update(dtype="float32", remat="full")
    config.optimizer.update(peak_lr=peak_lr, schedule="linear", warmup_steps=4, end_fraction=0.1)
    config.update(changes)
    return config


def sums():
    """Writes the problems of part d; no question that measures is among those that are trained on."""
    config = default_config("reasoning")
    config.update(dict(task="chain_sum", options=SUMS, sft=76, train=6000, dev=560))
    return config


def sft_sums(start, data):
    """Part d's cold start: how an answer looks, on the solved problems that are not measured."""
    config = base("sft", start, 5e-4, steps=8, batch_size=8, length=256)
    config.data.train = [dict(path=str(data), shape="messages")]
    return config


def grpo_sums(start, data):
    """Part d. The reward is what is measured and nothing else."""
    config = base(
        "grpo", start, 4e-4, prompts_per_rollout=16, samples_per_prompt=8, batch_size=64, steps=240, length=48,
        max_new_tokens=8, dynamic_sampling=1, fold_rows=8, checkpoint_every=20, measure_kl=False,
        rewards=[dict(name="reasoning_gym", weight=1.0)])
    config.objective.update(kl_coefficient=0.0, clip_high=0.28)
    config.model.remat = "none"  # nine hundred tokens a step are few enough to be kept
    config.optimizer.warmup_steps = 8
    config.data.train = [dict(path=str(data), shape="prompts")]
    return config


def sft(start):
    """Part a."""
    config = base("sft", start, 3e-4, steps=30, batch_size=4, length=256)
    sets = [dict(path=str(DATA / "sft" / name), shape=shape, holdout=0.05) for name, shape in TALK.items()]
    sets[-1] |= dict(strip_end="###eos_token###")
    config.data.update(train=[source | dict(split="train", share=1 / len(sets)) for source in sets],
                       dev=[source | dict(split="dev", limit=40) for source in sets], on_bad_row="skip")
    return config


def dpo(start):
    """Part b."""
    config = base("dpo", start, 1e-4, steps=30, batch_size=8, length=256, checkpoint_every=10)
    pairs = dict(path=str(DATA / "preference" / "rasbt_preference.json"), shape="pairs", holdout=0.1)
    config.data.update(train=[pairs | dict(split="train")], dev=[pairs | dict(split="dev")], on_bad_row="skip",
                       truncate="left")
    return config


def reward(start):
    """Part c."""
    config = base("reward", start, 3e-4, steps=30, batch_size=8, length=256, checkpoint_every=10)
    config.objective.name = "bradley_terry"
    files = {split: dict(path=str(DATA / "preference" / f"hh_harmless.{split}.jsonl.gz"), shape="pairs")
             for split in ("train", "dev")}
    config.data.update(train=[files["train"]], dev=[files["dev"]], on_bad_row="skip", truncate="left")
    return config


def grpo_gsm8k(start):
    """Part e."""
    config = base("grpo", start, 2e-4, prompts_per_rollout=4, samples_per_prompt=8, batch_size=32, steps=6, length=160,
                  max_new_tokens=160, fold_rows=32, checkpoint_every=2, rewards=[dict(name="numeric", weight=1.0)])
    config.objective.kl_coefficient = 0.0
    config.data.update(train=[dict(path=str(DATA / "verifiable" / "gsm8k.train.jsonl"), shape="gsm8k")],
                       truncate="error", on_bad_row="skip")
    return config
