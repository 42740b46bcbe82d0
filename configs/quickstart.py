"""The story of how an assistant is made, on a generated miniature world: every stage, measured.

    jaxalign pipeline --config=configs/quickstart.py --workdir=runs/quickstart

About ten minutes on two CPU cores. Figures, with the command that made them: experiments/quickstart/README.md.
"""

from jaxalign.pipeline import pipeline_config
from jaxalign.stages import default_config


def stage(name, **changes):
    """The defaults of a stage with some of them changed, nested groups key by key."""
    config = default_config(name)
    config.update(changes)
    return config


def jsonl(path, shape, **more):
    return dict(path=path, shape=shape, **more)


def get_config():
    world = {"train": "@world/{}.train.jsonl", "dev": "@world/{}.dev.jsonl"}
    text, talk, asked = "pretrain", "sft", "align"
    pretrain = stage(
        "pretrain", tokenizer="@tokenizer/tokenizer.model", steps=1400, batch_size=8, log_every=50,
        optimizer=dict(peak_lr=4e-3, schedule="linear", warmup_steps=50, end_fraction=0.02),
        data=dict(train=[jsonl(world["train"].format(text), "text")], dev=[jsonl(world["dev"].format(text), "text")]))
    sft_settings = dict(
        tokenizer="@tokenizer/tokenizer.model", steps=400, batch_size=8, log_every=25,
        optimizer=dict(peak_lr=8e-4, schedule="linear", warmup_steps=20, end_fraction=0.02),
        data=dict(train=[jsonl(world["train"].format(talk), "messages", share=0.85),
                         jsonl(world["train"].format(text), "text", share=0.15)],
                  dev=[jsonl(world["dev"].format(talk), "messages")]))
    rankings = dict(train=[jsonl("@candidates/rankings.train.jsonl", "rankings")],
                    dev=[jsonl("@candidates/rankings.dev.jsonl", "rankings")])
    prompts = jsonl(world["train"].format(asked), "prompts")
    return pipeline_config(
        world=stage("world"),
        tokenizer=stage("tokenizer", vocab_size=768, model_type="bpe",
                        data=dict(train=[jsonl("@world/tokenizer.train.jsonl", "text")])),
        pretrain=pretrain,
        sft=stage("sft", init_from="@pretrain", **sft_settings),
        scratch=stage("sft", **sft_settings),
        candidates=stage("candidates", init_from="@sft", samples_per_prompt=6, answers=4,
                         data=dict(train=[dict(prompts, limit=2400)],
                                   dev=[jsonl(world["dev"].format(asked), "prompts")])),
        reward=stage("reward", init_from="@sft", steps=300, batch_size=16, length=96, log_every=25, data=rankings,
                     optimizer=dict(peak_lr=5e-4, schedule="linear", warmup_steps=20, end_fraction=0.02)),
        ppo=stage("ppo", init_from="@sft", reward_model="@reward", steps=120, batch_size=64, prompts_per_rollout=64,
                  log_every=5, kl_coefficient=0.05, data=dict(train=[prompts]),
                  optimizer=dict(peak_lr=3e-4, schedule="linear", warmup_steps=5, end_fraction=0.1)),
        dpo=stage("dpo", init_from="@sft", steps=200, batch_size=32, length=96, log_every=25, data=rankings,
                  optimizer=dict(peak_lr=3e-4, schedule="linear", warmup_steps=10, end_fraction=0.02)),
        grpo=stage("grpo", init_from="@ppo", steps=60, batch_size=128, prompts_per_rollout=16, samples_per_prompt=8,
                   log_every=5, rewards=[dict(name="numeric", weight=1.0)], reward_kinds=["arithmetic"],
                   data=dict(train=[jsonl(world["train"].format("grpo"), "prompts", share=0.75), dict(prompts, share=0.25)]),
                   optimizer=dict(peak_lr=3e-4, schedule="linear", warmup_steps=5, end_fraction=0.1)),
        claims=stage("claims", world="@world", rankings="@candidates/rankings.dev.jsonl", base="@pretrain", sft="@sft",
                     scratch="@scratch", reward="@reward", ppo="@ppo", dpo="@dpo", grpo="@grpo"),
    )
