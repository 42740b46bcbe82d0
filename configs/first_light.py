"""The whole pipeline on real text: books, TinyStories, instructions, human preferences, generated sums.

    jaxalign pipeline --config=configs/first_light.py --workdir=runs/first_light

About 50 minutes of processor time. Needs the sets under $JAXALIGN_SHARED_DATA (else ../shared/data beside the
repository) and the extra `reasoning`. Figures, whatever they are: experiments/first_light/README.md.
"""

import os
import pathlib

from jaxalign.pipeline import pipeline_config
from jaxalign.stages import default_config

BESIDE = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
DATA = os.environ.get("JAXALIGN_SHARED_DATA") or str(BESIDE)


def stage(name, peak_lr=None, **changes):
    """The defaults of a stage with some of them changed, nested groups key by key."""
    config = default_config(name)
    config.update(changes)
    if peak_lr:
        first = name in ("pretrain", "sft")
        config.optimizer.update(name="muon" if first else "adamw", peak_lr=peak_lr, schedule="linear",
                                warmup_steps=20 if first else 5, end_fraction=0.05, muon_adam_fraction=2.0)
        # As in configs/quickstart.py, with rotations made for a few hundred positions.
        config.model.update(unroll=4, tied_embeddings=False, embed_scale=128**0.5, qk_norm=True, rope_theta=1000.0)
    return config


def source(path, shape, **more):
    return dict(path=path if path.startswith("@") else f"{DATA}/{path}", shape=shape, **more)


def get_config():
    books, stories = "pretrain/books.{}.jsonl.gz", "pretrain/tinystories.{}.jsonl"
    dev = dict(split="dev", holdout=0.05)  # of the sets that come without a dev file
    text = dict(train=[source(books.format("train"), "text", share=0.7),
                       source(stories.format("train"), "text", share=0.3)],
                dev=[source(books.format("dev"), "text"), source(stories.format("dev"), "text")])
    talk = [source("sft/alpaca_en_demo.json", "alpaca"), source("sft/rasbt_instruction_data.json", "alpaca"),
            source("sft/gpteacher_roleplay.json", "alpaca"), source("sft/topical_chat.valid_freq.jsonl", "messages"),
            source("sft/dolly_sample.jsonl", "prompt_response", strip_end="###eos_token###")]
    shares = (0.2, 0.1, 0.2, 0.15, 0.05)
    chosen = [source("preference/hh_harmless.train.jsonl.gz", "pairs", share=0.1)]  # learned from as conversations
    made = [source("@reasoning/sft.jsonl", "prompt_response", share=0.2)]
    talk = dict(train=[dict(s, split="train", share=share) for s, share in zip(talk, shares)] + chosen + made,
                dev=[dict(s, **dev) for s in talk], on_bad_row="skip")
    pairs = dict(train=[source("preference/hh_harmless.train.jsonl.gz", "pairs")],
                 dev=[source("preference/hh_harmless.dev.jsonl.gz", "pairs")], on_bad_row="skip", truncate="left")
    # The first has few rankings; the second (without the passages it was judged by, which are too long) gives enough to measure.
    ranked = [source("preference/oasst_trees.jsonl", "oasst_trees", holdout=0.4),
              source("preference/finegrained_qa_feedback.json", "finegrained_qa", fields=dict(passages=None), holdout=0.3)]
    ranked = dict(train=[dict(s, split="train", share=0.5) for s in ranked], dev=[dict(s, split="dev") for s in ranked],
                  on_bad_row="skip")
    asked = dict(train=pairs["train"], on_bad_row="skip")
    sums = dict(train=[source("@reasoning/train.jsonl", "prompts", share=0.9),
                       source("preference/hh_harmless.train.jsonl.gz", "pairs", share=0.1)], on_bad_row="skip")
    problems = dict(min_terms=2, max_terms=3, min_digits=1, max_digits=1)
    return pipeline_config(
        reasoning=stage("reasoning", options=problems, sft=4000, train=4000, dev=400),
        tokenizer=stage("tokenizer", vocab_size=2048, model_type="bpe", max_chars=6_000_000,
                        data=dict(train=text["train"] + talk["train"][:5])),
        pretrain=stage("pretrain", 8e-3, tokenizer="@tokenizer/tokenizer.model", steps=1200, batch_size=16, length=256,
                       log_every=50, eval_batches=0, data=text),
        sft=stage("sft", 3e-3, init_from="@pretrain", steps=300, batch_size=12, length=384, log_every=25,
                  eval_batches=0, data=talk),
        reward_pairs=stage("reward", 5e-4, init_from="@sft", objective=dict(name="bradley_terry"), steps=200,
                           batch_size=8, length=256, log_every=20, eval_batches=0, data=pairs),
        reward=stage("reward", 2e-4, init_from="@reward_pairs", steps=100, batch_size=4, length=448, max_answers=4,
                     log_every=10, eval_batches=0, data=ranked),
        dpo=stage("dpo", 1e-4, init_from="@sft", steps=100, batch_size=8, length=256, log_every=10, eval_batches=0,
                  data=pairs),
        ppo=stage("ppo", 1e-4, init_from="@sft", reward_model="@reward_pairs", steps=40, batch_size=64, length=96,
                  max_new_tokens=64, kl_coefficient=0.1, critic_warmup=8, log_every=4, data=asked),
        grpo=stage("grpo", 3e-4, init_from="@ppo", steps=80, length=48, max_new_tokens=16, log_every=5,
                   rewards=[dict(name="numeric", weight=1.0)], reward_kinds=["chain_sum"], data=sums),
    )
