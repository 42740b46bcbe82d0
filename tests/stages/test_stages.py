"""What a stage takes over, what it refuses, and a loss of one's own."""

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest
import tiny_stages

from jaxalign import pipeline
from jaxalign.data.tokenizer import train_tokenizer
from jaxalign.errors import CheckpointError, ConfigError
from jaxalign.evaluate import evaluate_checkpoint
from jaxalign.models.transformer import ModelConfig, Transformer
from jaxalign.objectives.reduce import reduce
from jaxalign.sharding import make_mesh
from jaxalign.stages import stage as stage_module
from jaxalign.stages import STAGES, default_config, load_assistant, train_stage
from jaxalign.stages.checks import check_stage
from jaxalign.stages.network import Network
from jaxalign.train.checkpoint import load_params, read_meta
from jaxalign.train.optimizer import make_optimizer
from jaxalign.train.state import create_state
from jaxalign.train.step import make_train_step

OBJECTIVE = '''
import jax.numpy as jnp


def focal(logp_BT, mask_BT, *, gamma):
    """Tokens that are already likely count less (arXiv:1708.02002)."""
    return -(1 - jnp.exp(logp_BT)) ** gamma * logp_BT, mask_BT


def wishful(logp_BT, advantage_BT):
    return logp_BT, advantage_BT


def reduced(logp_BT):
    return logp_BT.mean()
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of one's own on the Python path."""
    (tmp_path / "my_losses.py").write_text(OBJECTIVE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_losses", raising=False)


def made(name, tmp_path, **changes):
    """A stage that has read its data and checked its objective, without training."""
    config = tiny_stages.config(name, **changes)
    return STAGES[name](config, tmp_path / name, make_mesh(devices=jax.devices()[:1]))


def with_objective(stage, **objective):
    config = tiny_stages.config(stage).unlock()
    config.objective = objective
    return config.lock()


def test_a_loss_by_its_dotted_path_trains(own, tmp_path):
    config = with_objective("pretrain", name="my_losses:focal", gamma=2.0)
    summary = train_stage(config, tmp_path / "run")
    assert summary["steps"] == 4 and summary["after"]["loss"] < summary["before"]["loss"]


def test_a_config_file_names_its_own_loss_as_flags_do(own, tmp_path):
    config = tiny_stages.config("pretrain")  # of `default_config`: locked, and with the options of another objective
    config.objective.name = "my_losses:focal"
    config.objective.gamma = 2.0
    stage = STAGES["pretrain"](config, tmp_path, make_mesh(devices=jax.devices()[:1]))
    assert stage.options == {"gamma": 2.0}
    check_stage(config, default_config("pretrain"))
    config.objective.z_loss = 1e-4  # which somebody has set, and focal does not know
    with pytest.raises(ConfigError, match="focal has no option 'z_loss'; it has: gamma"):
        check_stage(config, default_config("pretrain"))


def test_a_name_the_stage_cannot_give_is_refused_with_those_it_can(own, tmp_path):
    with pytest.raises(ConfigError, match="wishful asks for advantage_BT .*it can give: .*entropy_BT.*logp_BT.*mask_BT"):
        train_stage(with_objective("pretrain", name="my_losses:wishful"), tmp_path)
    with pytest.raises(ConfigError, match="needs the option gamma"):
        train_stage(with_objective("pretrain", name="my_losses:focal"), tmp_path)
    with pytest.raises(ConfigError, match="expected one of .*cross_entropy"):
        train_stage(with_objective("pretrain", name="cross_entrpy"), tmp_path)
    with pytest.raises(ConfigError, match="asks for logp_BT .*it can give: answer_mask_BR"):
        train_stage(with_objective("reward", name="cross_entropy"), tmp_path)


def test_a_loss_that_was_already_reduced_is_refused(own, tmp_path):
    with pytest.raises(ConfigError, match="unreduced values with their weights"):
        train_stage(with_objective("pretrain", name="my_losses:reduced"), tmp_path)


@pytest.mark.parametrize("name", ["pretrain", "reward", "dpo", "grpo"])
def test_what_a_stage_says_it_can_give_it_gives(name, tmp_path):
    stage = made(name, tmp_path)
    if name == "grpo":
        batch = {f"{n}_BT": np.ones((2, 4), np.int32) for n in ("tokens", "targets", "positions", "segment_ids")}
        given = {"old_logp_BT", "ref_logp_BT", "advantage_BT", "reward_B", "sampler_logp_BT",
                 "budget_B"}  # from the rollout
        batch |= {"mask_BT": np.ones((2, 4), np.float32)} | {n: np.ones((2, 4), np.float32) for n in given}
    else:
        batch = {k: v for k, v in next(stage.train_data).items() if isinstance(v, np.ndarray)}
    trainable = jax.eval_shape(stage.init, jax.random.key(0))

    def available(trainable, batch):
        frozen = {"reference": trainable.get("policy")}
        return {name: v() if callable(v) else v for name, v in stage.available(trainable, frozen, batch).items()}

    got = jax.eval_shape(available, trainable, batch)
    missing = stage.names(stage.objective) - set(got)
    assert missing <= ({"chosen_score_B", "rejected_score_B", "margin_B", "weight_B"} if name == "reward" else set())


def test_a_stage_starts_from_what_its_parent_left(tmp_path):
    parent = tiny_stages.trained("sft")
    stage = made("dpo", tmp_path)
    random = jax.jit(stage.init)(jax.random.key(7))
    started = stage.start(random)
    expected = load_params(read_meta(parent)[0], "policy", stage.network.abstract)
    jax.tree.map(np.testing.assert_array_equal, started["policy"], expected)
    jax.tree.map(np.testing.assert_array_equal, stage.frozen["reference"], expected)
    for policy, reference in zip(jax.tree.leaves(started), jax.tree.leaves(stage.frozen["reference"])):
        assert policy is not reference  # the one's memory is given away with each step
    lineage = stage.meta()["lineage"]
    assert [step["stage"] for step in lineage] == ["pretrain", "sft", "dpo"]
    assert lineage[-1]["parent"] == parent


def test_a_reward_model_starts_under_a_fresh_head_and_the_critic_as_the_reward_model(tmp_path):
    stage = made("reward", tmp_path)
    started = stage.start(jax.jit(stage.init)(jax.random.key(7)))
    policy = load_params(read_meta(tiny_stages.trained("sft"))[0], "policy", stage.network.abstract)
    jax.tree.map(np.testing.assert_array_equal, started["reward"]["backbone"], policy)
    assert not np.any(started["reward"]["head"]["kernel"][...])
    ppo = made("ppo", tmp_path)
    started = ppo.start(jax.jit(ppo.init)(jax.random.key(7)))
    reward = load_params(read_meta(tiny_stages.trained("reward"))[0], "reward", ppo.scorer.abstract)
    jax.tree.map(np.testing.assert_array_equal, started["critic"], reward)
    jax.tree.map(np.testing.assert_array_equal, ppo.frozen["reward"], reward)
    assert np.any(reward["head"]["kernel"][...])


def test_a_reward_model_is_no_assistant_and_a_policy_no_reward_model(tmp_path):
    with pytest.raises(CheckpointError, match="expected a reward model, this is a checkpoint of the stage 'sft'"):
        made("ppo", tmp_path, reward_model=tiny_stages.trained("sft"))


def test_pairs_train_a_reward_model_by_bradley_terry(tmp_path):
    config = with_objective("reward", name="bradley_terry", margin_scale=0.0, centre=0.01)
    stage = STAGES["reward"](config, tmp_path, make_mesh(devices=jax.devices()[:1]))
    assert stage.kind == "pairs" and "margin_B" in next(stage.train_data)


def test_a_finished_stage_called_again_does_nothing_more(tmp_path):
    config = tiny_stages.config("sft", steps=2)
    first = train_stage(config, tmp_path)
    before = {p: p.stat().st_mtime for p in (tmp_path / "checkpoints").rglob("*") if p.is_file()}
    again = train_stage(config, tmp_path)
    assert again["steps"] == first["steps"] == 2 and again["after"] == first["after"]
    assert before == {p: p.stat().st_mtime for p in (tmp_path / "checkpoints").rglob("*") if p.is_file()}
    with pytest.raises(CheckpointError, match="already trained 2 steps, config.steps=1"):
        train_stage(tiny_stages.config("sft", steps=1), tmp_path)


def test_a_rollout_that_holds_more_steps_than_are_left_ends_at_the_last(tmp_path):
    config = tiny_stages.config("grpo", steps=3)  # a rollout holds two steps
    assert train_stage(config, tmp_path)["steps"] == 3
    assert [row["step"] for row in tiny_stages.metrics(tmp_path)] == [1, 2, 3]
    assert train_stage(config, tmp_path)["steps"] == 3


def test_sizes_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="batch_size=4 must divide by data × fsdp × microbatches = 3; use 6"):
        train_stage(tiny_stages.config("sft", microbatches=3), tmp_path)
    with pytest.raises(ConfigError, match="batch_size=5 must divide prompts_per_rollout"):
        made("grpo", tmp_path, batch_size=5)
    with pytest.raises(ConfigError, match="config.rewards is empty"):
        made("grpo", tmp_path, rewards=[])
    with pytest.raises(ConfigError, match="config.reward_model is empty"):
        made("ppo", tmp_path, reward_model="")
    with pytest.raises(ConfigError, match="config.stage='fst' must be one of world, "):
        config = default_config("sft").unlock()
        config.stage = "fst"
        train_stage(config, tmp_path)


def test_a_model_with_learned_positions_is_given_no_longer_rows(tmp_path):
    model = dict(tiny_stages.MODEL, learned_positions=24, rope_fraction=0.0)
    with pytest.raises(ConfigError, match="pretrain: config.length=32 takes 32 places, the model has learned 24; make it"):
        made("pretrain", tmp_path, model=model)
    train_stage(tiny_stages.config("pretrain", model=model, length=24, steps=0), tmp_path / "run")
    with pytest.raises(ConfigError, match="config.length=20 with config.max_new_tokens=6 takes 26 places, .* learned 24"):
        made("grpo", tmp_path, init_from=str(tmp_path / "run"))
    source, options = f"{tiny_stages.data()['text']['path']}:text", {"length": 24}
    assert np.isfinite(evaluate_checkpoint(tmp_path / "run", source, options)[source]["bits_per_byte"]["value"])
    with pytest.raises(ConfigError, match="evaluate: a row takes 256 places, .* learned 24; use a smaller --length"):
        evaluate_checkpoint(tmp_path / "run", source)


def test_the_assistant_of_a_checkpoint_talks_and_knows_its_tokenizer():
    assistant = load_assistant(tiny_stages.trained("sft"), max_new_tokens=4, batch_size=4, bucket=32)
    asked = [[{"role": "user", "content": "1+1?"}], [{"role": "user", "content": "2+1?"}]]
    first, again = (assistant.reply(asked, seed=1) for _ in range(2))
    assert first == again and len(first) == 2
    assert assistant.meta["model"] == json.loads(json.dumps(assistant.meta["model"]))
    assert ModelConfig(**assistant.meta["model"]).width == 16 and assistant.tokenizer.vocab_size == 320


@pytest.mark.parametrize("name", ["pretrain", "sft", "reward", "dpo", "grpo"])
def test_every_stage_shows_one_row_and_what_counts_in_it(name, tmp_path, capsys):
    stage = made(name, tmp_path, preview=True)
    shown = capsys.readouterr().out
    assert ("what counts in the loss is drawn later" if name == "grpo" else "positions count in the loss") in shown
    assert ("⟦" in shown) == (name != "grpo")
    # Looking at a row does not use it up.
    assert stage.train_data.get_state() == made(name, tmp_path, preview=False).train_data.get_state()


@pytest.mark.parametrize(("changes", "expected"), [
    (dict(microbatches=0), "microbatches=0: expected 1 or more"),
    (dict(log_every=0), "log_every=0: expected 1 or more"),
    (dict(keep=0), "keep=0: expected 1 or more"), (dict(steps=-3), "steps=-3: expected 0 or more"),
    (dict(model=dict(num_layers=0)), "model.num_layers=0: expected 1 or more"),
    (dict(optimizer=dict(peak_lr=-1.0)), "optimizer.peak_lr=-1.0: expected 0 or more"),
    (dict(optimizer=dict(name="adam")), "optimizer.name='adam' must be one of"),
    (dict(optimizer=dict(schedule="cosin")), "optimizer.schedule='cosin' must be one of"),
    (dict(data=dict(train=["x.jsonl"])), "a data source is a dict such as .* got str 'x.jsonl'"),
    (dict(data=dict(dev=[dict(path="x.jsonl", shape="txt")])), "shape='txt' of x.jsonl; expected one of"),
    (dict(data=dict(on_bad_row="skp")), "config.data.on_bad_row='skp'; expected one of 'error', 'skip'"),
    (dict(data=dict(packing="fit")), "config.data.packing='fit'; expected one of 'best_fit', 'none'"),
    (dict(objective=dict(z_los=0.1)), "cross_entropy has no option 'z_los'; did you mean 'z_loss'"),
    (dict(objective=dict(name="cross_entrpy")), "no function 'cross_entrpy'; did you mean 'cross_entropy'"),
    (dict(model=dict(remat="ful")), "model.remat='ful' must be one of"),
])
def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path, changes, expected):
    with pytest.raises(ConfigError, match=expected):
        train_stage(tiny_stages.config("sft", **changes), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_chain_is_checked_whole_before_its_first_stage(tmp_path):
    sft, grpo = tiny_stages.config("sft"), default_config("grpo")
    grpo.update(dict(init_from="@sft", rewards=[dict(name="nummeric")], data=dict(train=[dict(path="@sft/x.jsonl",
                                                                                           shape="prompts")])))
    with pytest.raises(ConfigError, match="^stages.grpo: no function 'nummeric'; did you mean 'numeric'"):
        pipeline.run_pipeline(pipeline.pipeline_config(sft=sft, grpo=grpo), tmp_path / "run")
    grpo.rewards = ["numeric"]
    with pytest.raises(ConfigError, match="config.rewards holds 'numeric'; expected entries such as"):
        pipeline.run_pipeline(pipeline.pipeline_config(sft=sft, grpo=grpo), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_config_of_the_other_kind_names_the_other_command(tmp_path):
    chain = pipeline.pipeline_config(sft=tiny_stages.config("sft"))
    with pytest.raises(ConfigError, match="a pipeline's, a chain of stages; run it with jaxalign pipeline"):
        train_stage(chain, tmp_path)
    with pytest.raises(ConfigError, match=r"of one stage \(sft\).* run it with jaxalign train"):
        pipeline.run_pipeline(tiny_stages.config("sft"), tmp_path)


def test_a_report_is_json_even_of_a_run_that_diverged():
    assert pipeline._finite({"a": [1.5, float("nan")], "b": {"c": float("-inf"), "d": "x"}}) == {
        "a": [1.5, None], "b": {"c": None, "d": "x"}}


@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_dev_data_that_nobody_would_read_are_refused(name, tmp_path):
    source = tiny_stages.data()["prompts"]
    with pytest.raises(ConfigError, match=f"{name}: config.data.dev is not read by a stage that draws its samples"):
        made(name, tmp_path, data=dict(train=[source], dev=[source]))


def test_what_changed_since_a_run_began_is_said(tmp_path, capsys):
    seconds = []
    for rate in (1e-2, 1e-2, 2e-2):
        config = tiny_stages.config("sft", steps=1, optimizer=dict(peak_lr=rate, warmup_steps=0))
        done = train_stage(config, tmp_path / "run")
        seconds.append(done["seconds"])
    shown = capsys.readouterr().out
    assert shown.count("found a checkpoint: nothing is left to do") == 2
    assert seconds[0] > 0 and seconds[1:] == seconds[:1] * 2  # where nothing is left to do, nothing is added
    (tmp_path / "run" / "done.json").unlink()  # as if the run had been stopped between its last checkpoint and this
    assert 0 < train_stage(config, tmp_path / "run")["seconds"] <= seconds[0]
    more = train_stage(tiny_stages.config("sft", steps=2, optimizer=dict(peak_lr=rate, warmup_steps=0)), tmp_path / "run")
    assert more["seconds"] > seconds[0]  # what was spent before is not forgotten
    assert shown.count("the config changed since this run began: ") == 1 and "optimizer.peak_lr: 0.01 → 0.02" in shown
    # What the checkpoint refuses leaves no trace in the folder.
    kept = (tmp_path / "run" / "config.json").read_text()
    assert json.loads(kept)["optimizer"]["peak_lr"] == 0.02
    with pytest.raises(CheckpointError, match="has already trained"):
        train_stage(tiny_stages.config("sft", steps=0), tmp_path / "run")
    assert (tmp_path / "run" / "config.json").read_text() == kept


def test_a_model_shape_that_init_from_overrules_is_said(tmp_path, capsys):
    made("sft", tmp_path, model=dict(width=512, num_layers=4, dtype="bfloat16"))
    said = [line for line in capsys.readouterr().out.splitlines() if "is not used" in line]
    assert len(said) == 1 and said[0].startswith("sft: config.model.width=512 is not used; the model of ")
    assert said[0].endswith(" has 16")


def test_a_tokenizer_larger_than_the_models_embedding_is_refused(tmp_path):
    texts = [f"{word} {word[::-1]} number {n}" for n, word in enumerate(["stone", "river", "mountain", "forest"] * 40)]
    large = train_tokenizer(texts, tmp_path / "large.model", vocab_size=400, model_type="bpe")
    assert large.vocab_size > 320
    with pytest.raises(CheckpointError, match="has [0-9]+ pieces, the model of .* embeds 320; use a tokenizer"):
        made("sft", tmp_path, tokenizer=str(tmp_path / "large.model"), allow_other_tokenizer=True)


def test_the_logits_of_a_batch_are_never_there_at_once(tmp_path, monkeypatch):
    """Of the step that a config compiles, without a word about chunks in it."""
    B, T, V = 8, 32, 4096
    monkeypatch.setattr(stage_module, "LOGITS", B * 4 * V)

    def temporary(**changes):
        stage = made("pretrain", tmp_path, batch_size=B, length=T, **changes)
        # As many pieces as a real tokenizer has; this one knows 320.
        stage.model_config = dataclasses.replace(stage.model_config, vocab_size=V)
        stage.network = Network(Transformer, stage.model_config)
        optimizer, schedule = make_optimizer(stage.config.optimizer, 4)
        state = create_state(stage.init, optimizer, jax.random.key(0), stage.mesh)
        step = jax.jit(make_train_step(stage.loss_fn, optimizer, schedule), donate_argnums=0)
        compiled = step.lower(state, stage.frozen, stage.next_batches(state)[0][0]).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary() < B * T * V * 4 < temporary(logits_chunk=T)


@pytest.mark.parametrize("unfinished", [0.0, -0.5])
def test_a_response_that_was_cut_earns_what_the_config_says(tmp_path, unfinished):
    stage = made("grpo", tmp_path, unfinished_reward=unfinished, samples_per_prompt=2, advantage_scale="none")
    policy = jax.jit(stage.init)(jax.random.key(0))["policy"]
    B, T = 4, 8
    batch = {f"{name}_BT": np.ones((B, T), np.int32) for name in ("tokens", "targets", "positions", "segment_ids")}
    batch |= {"mask_BT": np.ones((B, T), np.float32), "sampler_logp_BT": np.zeros((B, T), np.float32),
              "reward_B": np.array([1.0, 1.0, 0.0, 1.0], np.float32),
              "scored_B": np.ones(B, np.float32),
              "finished_B": np.array([1, 0, 1, 1], np.float32)}  # the second had said the right thing, and then went on
    made_of, _ = jax.jit(stage.targets)({"policy": policy}, {"reference": policy}, batch)
    np.testing.assert_allclose(made_of["reward_B"], [1.0, unfinished, 0.0, 1.0])
    half = (1.0 - unfinished) / 2
    np.testing.assert_allclose(made_of["advantage_BT"][:, 0], [half, -half, -0.5, 0.5], rtol=1e-6)


def test_what_became_of_the_data_is_said_and_stands_in_every_line(tmp_path, capsys):
    rows = [{"prompt": f"{a}+1?", "answer": "four " * (1 + 40 * (a % 4 == 0))} for a in range(12)]
    path = tiny_stages.jsonl(tmp_path / "rows.jsonl", [*rows, {"prompt": "x", "answer": ""}])
    source = dict(path=str(path), shape="prompt_response")
    data = dict(train=[source], dev=[source], on_bad_row="skip")
    summary = train_stage(tiny_stages.config("sft", steps=2, data=data), tmp_path / "run")
    shown = capsys.readouterr().out
    for split, listed in (("train", "bad_rows.jsonl"), ("dev", "bad_dev_rows.jsonl")):
        line, = (line for line in shown.splitlines() if line.startswith(f"sft {split} data: 12 rows, "))
        assert "1 bad row skipped; truncated 3 right, 0 left" in line
        assert line.endswith(f"listed in {tmp_path / 'run' / listed}")
        assert json.loads((tmp_path / "run" / listed).read_text())["line"] == 13
    assert "truncated 25.0%" in shown
    assert [row["truncated"] for row in tiny_stages.metrics(tmp_path / "run") if "loss" in row] == [0.25, 0.25]
    assert summary["data"]["train"] == {"rows": 12, "bad": 1, "truncated": 0.25}


def test_grades_that_are_no_steps_are_refused(tmp_path):
    config = default_config("candidates")
    config.grade = 0.0
    with pytest.raises(ConfigError, match="config.grade=0.0 must be above 0"):
        STAGES["candidates"].run(config, tmp_path)


@pytest.mark.parametrize("wrong", [[], [0.7, -1.0], ["warm"]])
def test_temperatures_that_are_none_are_refused(tmp_path, wrong):
    config = default_config("candidates")
    config.temperatures = wrong
    with pytest.raises(ConfigError, match=r"config.temperatures=\[.*\] must be one number or more"):
        STAGES["candidates"].run(config, tmp_path)


def test_a_reward_model_may_go_on_being_a_language_model(tmp_path):
    with pytest.raises(ConfigError, match='config.lm_coefficient=0.5 .* only config.pooling="likelihood"'):
        made("reward", tmp_path, lm_coefficient=0.5)
    stage = made("reward", tmp_path, pooling="likelihood", lm_coefficient=0.5)
    trainable = stage.start(jax.jit(stage.init)(jax.random.key(0)))
    batch = stage.next_batches(None)[0][0]
    lm = jax.jit(lambda *x: reduce({"lm": stage.loss_fn(*x, jax.random.key(1)).terms["lm"]})[0])(trainable, {}, batch)
    B, R, T = batch["tokens_BRT"].shape
    names = ("tokens", "targets", "positions", "segment_ids", "mask")
    rows = {f"{name}_BT": batch[f"{name}_BRT"].reshape(B * R, T) for name in names}
    # The backbone is the SFT model still: what it gives the best answers, by the way that SFT itself measures it.
    logp_BRT = np.asarray(jax.jit(stage.statistics)(trainable["reward"]["backbone"], rows).logp_BT).reshape(B, R, T)
    best_BRT = batch["mask_BRT"] * (batch["ranks_BR"] == 0)[..., None] * batch["answer_mask_BR"][..., None]
    np.testing.assert_allclose(lm, -0.5 * (logp_BRT * best_BRT).sum() / best_BRT.sum(), rtol=1e-5)
    assert 0 < best_BRT.sum() < batch["mask_BRT"].sum()
    plain = made("reward", tmp_path)
    seen = []
    jax.eval_shape(lambda *x: seen.extend(plain.loss_fn(*x, jax.random.key(1)).terms), trainable, {}, batch)
    assert seen and "lm" not in seen


@pytest.mark.parametrize("name, changes", [
    ("reward", dict(pooling="likelihood", lm_coefficient=0.5)), ("ppo", {}),
    *(pytest.param(name, {}, marks=pytest.mark.slow) for name in ("reward", "dpo"))])  # GRPO's rows are PPO's, but tiny it earns nothing
def test_packing_rows_for_the_forward_pass_changes_no_figure(name, changes, tmp_path):
    figures = {}
    for fold in (True, False):
        train_stage(tiny_stages.config(name, fold=fold, steps=3, **changes), tmp_path / str(fold))
        figures[fold] = [row for row in tiny_stages.metrics(tmp_path / str(fold)) if "loss" in row]
    assert len(figures[True]) == 3
    for packed, plain in zip(figures[True], figures[False], strict=True):
        for key in ("loss", "grad_norm"):
            np.testing.assert_allclose(packed[key], plain[key], rtol=2e-3, atol=1e-5)
