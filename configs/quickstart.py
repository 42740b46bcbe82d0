"""The story of how an assistant is made, on a generated miniature world: every stage, measured.

    jaxalign pipeline --config=configs/quickstart.py --workdir=runs/quickstart

Ten minutes on two quiet CPU cores, fewer on fast ones. Figures, with the command that made them: experiments/quickstart/README.md.
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


def muon(peak_lr, warmup_steps):
    # Embeddings learn at twice the rate of the matrices: experiments/quickstart/README.md has what that moved.
    return dict(name="muon", peak_lr=peak_lr, schedule="linear", warmup_steps=warmup_steps, end_fraction=0.02,
                muon_adam_fraction=2.0)


def get_config():
    world = {"train": "@world/{}.train.jsonl", "dev": "@world/{}.dev.jsonl"}
    text, talk, asked = "pretrain", "sft", "align"
    # Names are copied and facts recalled after far fewer steps with embeddings of unit size and apart from the output,
    # normalised queries and keys, and rotations made for a hundred positions.
    model = dict(unroll=4, tied_embeddings=False, embed_scale=128**0.5, qk_norm=True, rope_theta=100.0)
    pretrain = stage(
        "pretrain", tokenizer="@tokenizer/tokenizer.model", steps=1500, batch_size=8, log_every=50,
        model=model, optimizer=muon(0.01, 20), objective=dict(z_loss=1e-4),
        data=dict(train=[jsonl(world["train"].format(text), "text")], dev=[jsonl(world["dev"].format(text), "text")]))
    # A fifth of the text goes on being read, so that what was learned from it stays.
    sft_settings = dict(
        tokenizer="@tokenizer/tokenizer.model", steps=300, batch_size=8, log_every=25, model=model,
        optimizer=muon(0.003, 10),
        data=dict(train=[jsonl(world["train"].format(talk), "messages", share=0.8),
                         jsonl(world["train"].format(text), "text", share=0.2)],
                  dev=[jsonl(world["dev"].format(talk), "messages")]))
    rankings = dict(train=[jsonl("@candidates/rankings.train.jsonl", "rankings")],
                    dev=[jsonl("@candidates/rankings.dev.jsonl", "rankings")])
    prompts = jsonl(world["train"].format(asked), "prompts")
    return pipeline_config(
        world=stage("world"),
        tokenizer=stage("tokenizer", vocab_size=1536, model_type="bpe",
                        data=dict(train=[jsonl("@world/tokenizer.train.jsonl", "text")])),
        pretrain=pretrain,
        sft=stage("sft", init_from="@pretrain", **sft_settings),
        scratch=stage("sft", **sft_settings),
        candidates=stage("candidates", init_from="@sft", samples_per_prompt=5, answers=4, length=48,
                         dev_samples_per_prompt=16,  # so that more of the rankings that measure have four answers, a grade apart
                         temperatures=[0.7, 0.7, 1.0, 1.0, 1.3], noise=0.05, choice="apart",
                         data=dict(train=[dict(prompts, limit=4200)],
                                   dev=[jsonl(world["dev"].format(asked), "prompts")])),
        reward=stage("reward", init_from="@sft", steps=520, batch_size=8, length=64, fold_rows=9, log_every=25, data=rankings,
                     pooling="likelihood", lm_coefficient=1.0, model=model, optimizer=muon(0.002, 10)),
        ppo=stage("ppo", init_from="@sft", reward_model="@reward", steps=110, length=48, fold_rows=18, log_every=4,
                  kl_coefficient=0.05, critic_warmup=8, model=model, data=dict(train=[prompts]),
                  optimizer=dict(peak_lr=9e-4, schedule="linear", warmup_steps=5, end_fraction=0.1)),
        # Without the likelihood of the chosen answer, what is right of some prompts is said to all: nothing in an
        # offline pair of two good answers speaks against a refusal.
        dpo=stage("dpo", init_from="@sft", steps=300, batch_size=16, length=64, fold_rows=11, log_every=25, data=rankings,
                  objective=dict(beta=0.5, nll_coefficient=1.0), model=model,
                  optimizer=dict(peak_lr=6e-4, schedule="linear", warmup_steps=10, end_fraction=0.02)),
        # A third of the prompts ask for no sum and earn no reward: there the KL term keeps what was learned before.
        grpo=stage("grpo", init_from="@ppo", steps=18, prompts_per_rollout=8, batch_size=64, length=48, fold_rows=20,
                   log_every=2, model=model, objective=dict(kl_coefficient=0.05),
                   rewards=[dict(name="numeric", weight=1.0)], reward_kinds=["arithmetic"],
                   data=dict(train=[jsonl(world["train"].format("grpo"), "prompts", share=0.65),
                                    dict(prompts, share=0.35)]),
                   optimizer=dict(peak_lr=4e-4, schedule="linear", warmup_steps=5, end_fraction=0.1)),
        claims=stage("claims", world="@world", rankings="@candidates/rankings.dev.jsonl",
                     blind_rankings="@candidates/rankings.blind.jsonl", base="@pretrain", sft="@sft", scratch="@scratch",
                     reward="@reward", ppo="@ppo", dpo="@dpo", grpo="@grpo", kl_budget=3.0),
    )
