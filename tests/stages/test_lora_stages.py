"""Stages under adapters: what is trained and kept, what is shared, what is handed over, and that it learns."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import tiny_stages
from flax import nnx

from jaxalign.cli import main
from jaxalign.errors import CheckpointError, ConfigError
from jaxalign.models.heads import ScalarModel
from jaxalign.models.quantized import held, quantized
from jaxalign.models.transformer import ModelConfig, Transformer
from jaxalign.sharding import make_mesh
from jaxalign.stages import STAGES, load_assistant, train_stage
from jaxalign.stages.network import Network
from jaxalign.train import adapters
from jaxalign.train.checkpoint import flat_shapes, load_params, read_meta

LORA = dict(rank=2, alpha=4.0)


def config(name, lora=LORA, **changes):
    if name == "pretrain":
        changes = dict(init_from=tiny_stages.trained("pretrain")) | changes
    return tiny_stages.config(name, lora=lora, **changes)


def made(name, workdir, devices=1, **changes):
    """(stage, what it trains as it starts)."""
    stage = STAGES[name](config(name, **changes), workdir, make_mesh(-1, devices=jax.devices()[:devices]))
    return stage, stage.start(jax.jit(stage.init)(jax.random.key(0)))


def plain(workdir):
    """The policy of a checkpoint, merged if need be."""
    folder, meta = read_meta(workdir)
    network = Network(Transformer, ModelConfig(**meta["model"]))
    return network, load_params(folder, meta["policy"], network.abstract)


def close(a, b, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


def buffers(*trees):
    """Bytes of all arrays, each counted once."""
    return sum({x.unsafe_buffer_pointer(): x.nbytes for x in jax.tree.leaves(trees)}.values())


@pytest.mark.parametrize("name", ["sft", "reward", "ppo", "grpo", *(pytest.param(name, marks=pytest.mark.slow)
                                                                    for name in ("pretrain", "dpo"))])
def test_every_stage_trains_and_keeps_adapters_and_heads_alone(name, tmp_path):
    # No tiny response earns anything; the KL term would then move GRPO's policy by what rounding leaves of it.
    changes = dict(objective=dict(kl_coefficient=0.0)) if name == "grpo" else {}
    made = config(name, steps=2, optimizer=dict(warmup_steps=0, weight_decay=0.1), **changes)
    assert train_stage(made, tmp_path / "run")["steps"] == 2
    _, meta = read_meta(tmp_path / "run")
    parts = {path.split("/")[0] for path in meta["parameters"]}
    assert parts == {"reward": {"reward"}, "ppo": {"policy", "critic"}}.get(name, {"policy"})
    heads = {path for path in meta["parameters"] if "adapter" not in path}
    assert {path.split("/", 1)[1] for path in heads} == ({"head/kernel", "gate/kernel"} if name in ("reward", "ppo")
                                                         else set())
    size = {path: int(np.prod(shape)) * 4 for path, (shape, _) in meta["parameters"].items()}
    state = sum(int(np.prod(shape)) * 4 for shape, _ in meta["optimizer"].values())
    assert 2 * sum(size.values()) <= state <= 2 * sum(size.values()) + 16  # two moments, and the counts of steps
    assert meta["lora"]["rank"] == 2 and meta["base"]["fingerprint"]
    # What the next stage is handed is the whole model, and it has moved.
    network, policy = plain(tmp_path / "run")
    _, before = plain(tiny_stages.trained(tiny_stages.PARENTS.get(name, name)))
    assert jax.tree.structure(policy) == jax.tree.structure(before)
    moved = any(np.abs(a - b).max() > 1e-6 for a, b in zip(*map(jax.tree.leaves, (policy, before))))
    assert moved == (name != "grpo")
    np.testing.assert_array_equal(policy["embed"][...], before["embed"][...])


def test_rank_zero_is_everything_trained_as_ever(tmp_path):
    runs = {}
    for lora in ({}, dict(rank=0, alpha=1.0, form="dora", dropout=0.5)):
        train_stage(tiny_stages.config("sft", lora=lora, steps=2), tmp_path / str(len(runs)))
        runs[len(runs)] = plain(tmp_path / str(len(runs)))[1]
    jax.tree.map(np.testing.assert_array_equal, *runs.values())
    assert "lora" not in read_meta(tmp_path / "1")[1]


def test_reference_critic_and_reward_model_are_the_policys_own_weights(tmp_path):
    train_stage(config("reward", steps=1), tmp_path / "reward")
    stage, trainable = made("ppo", tmp_path / "ppo", reward_model=str(tmp_path / "reward"))
    base = stage.frozen["base"]["policy"]
    whole = stage.whole(trainable, stage.frozen)
    for other in (stage.frozen["reference"], stage.frozen["base"]["critic"]["backbone"],
                  nnx.split_state(stage.frozen["reward"]["backbone"], nnx.LoRAParam, ...)[1], whole["policy"]):
        mine = dict(nnx.to_flat_state(other))
        assert all(mine[path].get_value() is variable.get_value() for path, variable in nnx.to_flat_state(base))
    one = buffers(base)
    small = buffers(trainable) + buffers(nnx.filter_state(stage.frozen["reward"], nnx.LoRAParam))
    assert buffers(trainable, stage.frozen) <= one + small + 200  # and the reward model's heads
    # What is trained is nobody else's: its memory is reused from step to step.
    frozen = {x.unsafe_buffer_pointer() for x in jax.tree.leaves(stage.frozen)}
    assert not frozen & {x.unsafe_buffer_pointer() for x in jax.tree.leaves(trainable)}
    # The critic begins as the reward model, adapters and all.
    close(stage.critic.network.merge(whole["critic"])(np.ones((1, 5), np.int32)),
          stage.scorer.merge(stage.frozen["reward"])(np.ones((1, 5), np.int32)))


def test_a_reward_model_that_was_trained_whole_has_weights_of_its_own(tmp_path):
    stage, trainable = made("ppo", tmp_path)
    critic = stage.whole(trainable, stage.frozen)["critic"]
    score = np.asarray(stage.scorer.merge(stage.frozen["reward"])(np.ones((1, 5), np.int32)))
    close(stage.critic.network.merge(critic)(np.ones((1, 5), np.int32)), score)
    assert np.abs(score).max() > 1e-4
    base, frozen = (dict(nnx.to_flat_state(s)) for s in (stage.frozen["base"]["critic"], stage.frozen["reward"]))
    assert all(frozen[path].get_value() is variable.get_value() for path, variable in base.items())


@pytest.mark.parametrize("form", ["lora", pytest.param("dora", marks=pytest.mark.slow)])
def test_a_stage_begins_as_its_parent_and_goes_on_with_its_adapters(form, tmp_path):
    lora = LORA | dict(form=form)
    stage, trainable = made("sft", tmp_path / "sft", lora=lora)
    network, parent = plain(tiny_stages.trained("pretrain"))
    tokens = np.arange(10, dtype=np.int32)[None]
    before = jax.jit(lambda p: network.merge(p)(tokens))(parent)
    whole = stage.whole(trainable, stage.frozen)["policy"]
    close(jax.jit(lambda p: stage.network.merge(p)(tokens))(whole), before, 1e-4, 1e-5)
    train_stage(config("sft", lora=lora), tmp_path / "sft")
    sft = jax.jit(lambda p: network.merge(p)(tokens))(plain(tmp_path / "sft")[1])
    assert np.abs(sft - before).max() > 1e-3
    for rank, continued in ((2, True), (3, False)):
        child, trainable = made("dpo", tmp_path / f"dpo{rank}", lora=lora | dict(rank=rank),
                                init_from=str(tmp_path / "sft"))
        whole = child.whole(trainable, child.frozen)["policy"]
        for policy in (whole, child.frozen["reference"]):
            close(jax.jit(lambda p: child.network.merge(p)(tokens))(policy), sft, 1e-4, 1e-5)
        assert (pathlib.Path(child.base["path"]).parents[1].name == "pretrain") == continued
        b = trainable["policy"]["layers"]["attention"]["query"]["adapter"]["b"][...]
        assert bool(np.any(b)) == continued
    # Of adapters merged into a base and adapters beside that, all are handed on.
    train_stage(config("dpo", lora=lora | dict(rank=3), init_from=str(tmp_path / "sft"), steps=1), tmp_path / "dpo3")
    assert [step["stage"] for step in read_meta(tmp_path / "dpo3")[1]["lineage"]] == ["pretrain", "sft", "dpo"]
    dpo = jax.jit(lambda p: network.merge(p)(tokens))(plain(tmp_path / "dpo3")[1])
    assert np.abs(dpo - sft).max() < 0.5


@pytest.mark.parametrize("changes", [
    {}, *(pytest.param(more, marks=pytest.mark.slow) for more in (
        dict(lora=dict(form="dora")), dict(optimizer=dict(lora_plus=2.0)), dict(optimizer=dict(name="muon", peak_lr=3e-3))))], ids=str)
def test_adapters_of_sixteen_bits_learn_as_those_of_thirty_two(changes, tmp_path):
    figures = {}
    for dtype in ("float32", "bfloat16"):
        lora = LORA | dict(rank=4, alpha=16.0, dtype=dtype) | changes.get("lora", {})
        optimizer = dict(peak_lr=1e-2, schedule="linear", warmup_steps=1) | changes.get("optimizer", {})
        figures[dtype] = train_stage(config("sft", lora=lora, steps=30, batch_size=8, optimizer=optimizer), tmp_path / dtype)
    meta = read_meta(tmp_path / "bfloat16")[1]
    assert {kind for name, (_, kind) in meta["parameters"].items() if "magnitude" not in name} == {"bfloat16"}
    assert {kind for _, kind in meta["optimizer"].values()} == {"float32", "int32"}
    before, after = ([done[when]["nll"] for done in figures.values()] for when in ("before", "after"))
    assert before[0] == pytest.approx(before[1], rel=1e-5) and after[0] < before[0] - 0.1
    assert after[1] == pytest.approx(after[0], abs=0.1 * (before[0] - after[0]))
    with pytest.raises(CheckpointError, match="adapter/a is bfloat16, this config makes it float32; go on with the run's own"):
        train_stage(config("sft", lora=LORA | dict(rank=4, alpha=16.0) | changes.get("lora", {}), steps=31, batch_size=8,
                           optimizer=optimizer), tmp_path / "bfloat16")
    # Whoever trains in other bits goes on with the same adapters.
    child, trainable = made("dpo", tmp_path / "dpo", lora=LORA | dict(rank=4, alpha=16.0) | changes.get("lora", {}),
                            init_from=str(tmp_path / "bfloat16"))
    b = trainable["policy"]["layers"]["attention"]["query"]["adapter"]["b"][...]
    assert b.dtype == np.float32 and np.any(b) and pathlib.Path(child.base["path"]).parents[1].name == "pretrain"


@pytest.mark.parametrize("name, changes", [("sft", dict(data=dict(packing="best_fit"))), ("dpo", {})])
def test_adapters_learn(name, changes, tmp_path):
    done = train_stage(config(name, lora=LORA | dict(rank=4, alpha=16.0), steps=30, batch_size=8,
                              optimizer=dict(peak_lr=3e-2, lora_plus=2.0), **changes), tmp_path)
    figure, least = {"sft": ("nll", 0.3), "dpo": ("preference", 0.05)}[name]
    assert done["after"][figure] < done["before"][figure] - least
    if name == "dpo":
        assert done["before"][figure] == pytest.approx(np.log(2), abs=1e-4)  # the policy is its reference


EXPERTS = tiny_stages.MODEL | dict(mlp="experts", num_experts=3, experts_per_token=2)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """The folder of a pretrained mixture of experts."""
    folder = tmp_path_factory.mktemp("mixture")
    train_stage(tiny_stages.config("pretrain", model=EXPERTS), folder)
    return str(folder)


@pytest.mark.parametrize("base", ["float32", "nf4"])
def test_experts_learn_by_adapters_of_their_own(base, mixture, tmp_path, capsys):
    done = train_stage(config("sft", lora=LORA | dict(rank=4, alpha=16.0, targets=("mlp",), base=base), steps=30, batch_size=8,
                              init_from=mixture, model=EXPERTS, optimizer=dict(peak_lr=3e-2, lora_plus=2.0),
                              data=dict(packing="best_fit")), tmp_path / "run")
    assert done["after"]["nll"] < done["before"]["nll"] - 0.2
    shapes = {path: tuple(shape) for path, (shape, _) in read_meta(tmp_path / "run")[1]["parameters"].items()}
    inputs = {"gate": 16, "up": 16, "down": 24}
    assert shapes == {f"policy/layers/mlp/{name}_adapter/{factor}": (1, 3, *((size, 4) if factor == "a" else (4, 40 - size)))
                      for name, size in inputs.items() for factor in "ab"}
    _, policy = plain(tmp_path / "run")
    _, before = plain(mixture)
    assert all(np.abs(policy["layers"]["mlp"][name][...] - before["layers"]["mlp"][name][...]).max() > 1e-3 for name in inputs)
    assert len(load_assistant(tmp_path / "run", max_new_tokens=2, batch_size=8).complete(["The"])) == 1
    export = ["export", f"--checkpoint={tmp_path / 'run'}"]
    assert main([*export, f"--to={tmp_path / 'alone'}", "--adapters"]) == 2
    assert "it adapts experts (layers/mlp/down, layers/mlp/gate, layers/mlp/up), for which" in capsys.readouterr().err
    assert not (tmp_path / "alone").exists()
    assert main([*export, f"--to={tmp_path / 'whole'}"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reward", "dpo", "ppo", "grpo"])
def test_every_stage_adapts_experts(name, mixture, tmp_path):
    model = dict(init_from=mixture, model=EXPERTS, steps=2)
    if name == "ppo":
        train_stage(config("reward", **model), tmp_path / "reward_model")
        model |= dict(reward_model=str(tmp_path / "reward_model"))
    assert train_stage(config(name, **model), tmp_path / "run")["steps"] == 2
    trained = {path for path in read_meta(tmp_path / "run")[1]["parameters"] if "_adapter/" in path}
    assert len(trained) == (12 if name == "ppo" else 6)  # A and B of three maps, of the critic too


@pytest.mark.slow
@pytest.mark.parametrize("form, base", [("dora", "float32"), ("lora", "float32"), ("lora", "nf4"), ("dora", "int8")])
def test_eight_devices_are_one(form, base, tmp_path):
    _same_on_eight_devices(tmp_path, lora=LORA | dict(form=form, base=base))


@pytest.mark.slow
@pytest.mark.parametrize("form, base", [("dora", "float32"), ("lora", "nf4")])
def test_eight_devices_are_one_for_experts(form, base, mixture, tmp_path):
    _same_on_eight_devices(tmp_path, lora=LORA | dict(form=form, base=base), init_from=mixture, model=EXPERTS)


def _same_on_eight_devices(tmp_path, **changes):
    after, axes = {}, {}
    for devices, mesh in ((1, dict(data=1)), (8, dict(data=2, fsdp=2, tensor=2))):
        run = tmp_path / str(devices)
        train_stage(config("sft", mesh=mesh, batch_size=8, steps=2, **changes), run)
        after[devices] = plain(run)[1]
        axes[devices] = tiny_stages.metrics(run)
    close(after[1], after[8], 1e-4, 1e-5)
    for a, b in zip(*(rows for rows in axes.values()), strict=True):
        assert a.get("grad_norm", 0) == pytest.approx(b.get("grad_norm", 0), rel=1e-4)
        assert a.get("loss", 0) == pytest.approx(b.get("loss", 0), rel=1e-5)


def test_dropout_is_of_training_alone(tmp_path):
    stage, trainable = made("sft", tmp_path, lora=LORA | dict(dropout=0.5))
    moved = jax.tree.map(lambda x: x + 0.1, trainable)
    batch = stage.next_batches(None)[0][0]
    loss = jax.jit(lambda key: stage.loss_fn(moved, stage.frozen, batch, key).terms["cross_entropy"].value)
    one, other, measured, again = (np.asarray(loss(key)) for key in (jax.random.key(0), jax.random.key(1), None, None))
    assert np.abs(one - other).max() > 1e-3 < np.abs(one - measured).max()
    np.testing.assert_array_equal(measured, again)
    with pytest.raises(ConfigError, match="grpo: config.lora.dropout=0.5 must be 0"):
        made("grpo", tmp_path / "grpo", lora=LORA | dict(dropout=0.5))


def test_a_run_that_was_moved_with_its_base_is_found_and_a_base_that_is_another_is_not_taken(tmp_path):
    shutil.copytree(tiny_stages.trained("pretrain"), tmp_path / "a" / "base")
    train_stage(config("sft", init_from=str(tmp_path / "a" / "base"), steps=1), tmp_path / "a" / "sft")
    _, before = plain(tmp_path / "a" / "sft")
    assert len(load_assistant(tmp_path / "a" / "sft", max_new_tokens=2, batch_size=8).complete(["The"])) == 1
    (tmp_path / "a").rename(tmp_path / "b")
    jax.tree.map(np.testing.assert_array_equal, plain(tmp_path / "b" / "sft")[1], before)
    shutil.rmtree(tmp_path / "b" / "base")
    with pytest.raises(CheckpointError, match="it holds adapters of .*base.* which is not there"):
        plain(tmp_path / "b" / "sft")
    train_stage(tiny_stages.config("pretrain", seed=1), tmp_path / "b" / "base")
    with pytest.raises(CheckpointError, match="were trained beside weights with the fingerprint .* it was trained anew"):
        plain(tmp_path / "b" / "sft")


@pytest.mark.parametrize("stage, part, form", [("sft", "policy", "dora"), ("reward", "reward", "lora")])
def test_merged_weights_take_the_place_of_their_base(stage, part, form, tmp_path, monkeypatch):
    train_stage(config(stage, lora=LORA | dict(form=form), steps=1), tmp_path)
    folder, meta = read_meta(tmp_path)
    read, load_base = [], adapters.load_base
    monkeypatch.setattr(adapters, "load_base", lambda *args: read.append(load_base(*args)) or read[-1])
    network = Network(Transformer if part == "policy" else ScalarModel, ModelConfig(**meta["model"]))
    jax.block_until_ready(load_params(folder, part, network.abstract))
    assert all(x.is_deleted() for x in jax.tree.leaves(read[0][1]))


@pytest.mark.parametrize("base", ["bfloat16", "nf4"])
def test_a_large_frozen_base_is_read_one_kernel_at_a_time(base, monkeypatch):
    network, params = plain(tiny_stages.trained("pretrain"))
    folder = read_meta(tiny_stages.trained("pretrain"))[0]
    wanted, before = quantized(params, base), {id(x) for x in jax.live_arrays()}
    alive = []

    def spy(path, variable, base):
        alive.append(sum(x.nbytes for x in jax.live_arrays() if id(x) not in before))
        return held(path, variable, base)

    monkeypatch.setattr(adapters, "held", spy)
    monkeypatch.setattr(adapters, "AT_ONCE", 0)
    frozen, mark = adapters.load_frozen(folder, network.abstract, base)
    jax.tree.map(np.testing.assert_array_equal, frozen, wanted)
    assert mark == adapters.fingerprint(params)
    largest = max(x.nbytes for x in jax.tree.leaves(params))
    assert len(alive) == len(jax.tree.leaves(params)) > 5
    assert max(alive) <= sum(x.nbytes for x in jax.tree.leaves(frozen)) + 2 * largest
    assert max(alive) < 0.8 * sum(x.nbytes for x in jax.tree.leaves(params))


def test_adapters_of_nothing_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="config.lora.rank=2 needs an init_from"):
        train_stage(tiny_stages.config("pretrain", lora=LORA), tmp_path)
    with pytest.raises(ConfigError, match="lora.form='doora' must be one of"):
        train_stage(tiny_stages.config("sft", lora=dict(form="doora")), tmp_path)
    with pytest.raises(ConfigError, match="lora.targets has 'head', which adapts nothing"):
        train_stage(tiny_stages.config("sft", lora=LORA | dict(targets=("head",))), tmp_path)


def test_how_much_is_trained_is_said(tmp_path, capsys):
    stage, trainable = made("sft", tmp_path)
    said, = (line for line in capsys.readouterr().out.splitlines() if "adapters of rank 2" in line)
    count = sum(int(np.prod(shape)) for shape, _ in flat_shapes(nnx.to_pure_dict(trainable["policy"])).values())
    assert f"trains {count:,} of " in said
    assert json.loads(json.dumps(stage.meta()))["lora"]["targets"] == ["attention", "mlp"]
