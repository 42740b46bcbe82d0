"""Import and export as a user calls them: a folder in, a checkpoint that stages start from, the same folder out."""

import json

import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from published_folder import published
from published_models import config_of, weight, write_model

pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")

import tiny_stages  # noqa: E402
from published_tokenizer import TEMPLATE, write_tokenizer  # noqa: E402

from jaxalign.cli import main  # noqa: E402
from jaxalign.data.chat import render  # noqa: E402
from jaxalign.data.published import PublishedTokenizer, pack_files, read_folder  # noqa: E402
from jaxalign.data.tokenizer import load_tokenizer, open_tokenizer, train_tokenizer  # noqa: E402
from jaxalign.data.vocabularies import byte_level_json  # noqa: E402
from jaxalign.errors import CheckpointError, ConfigError  # noqa: E402
from jaxalign.evaluate.assistant import Assistant  # noqa: E402
from jaxalign.evaluate.preferences import RewardModel  # noqa: E402
from jaxalign.exchange.exporting import tokenizer_files  # noqa: E402
from jaxalign.exchange.importing import check_ids  # noqa: E402
from jaxalign.exchange.safetensors import Safetensors, write  # noqa: E402
from jaxalign.exchange.tokenizer_json import sentencepiece_json  # noqa: E402
from jaxalign.models.transformer import logits_of  # noqa: E402
from jaxalign.stages import train_stage  # noqa: E402
from jaxalign.train.checkpoint import pack_tokenizer, read_meta  # noqa: E402


def with_tokens(model, *tokens):
    """Adds tokens (id, text, whether it is special) to a folder's tokenizer.json."""
    spec = json.loads((model / "tokenizer.json").read_text())
    like = spec["added_tokens"][0]
    spec["added_tokens"] += [like | {"id": i, "content": text, "special": special} for i, text, special in tokens]
    (model / "tokenizer.json").write_text(json.dumps(spec))
    return model


def losses(workdir):
    return [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """(published folder, checkpoint of it)."""
    folder = tmp_path_factory.mktemp("published")
    assert main(["import", f"--from={published(folder / 'model')}", f"--to={folder / 'run'}"]) == 0
    return folder / "model", folder / "run"


def same_tensors(one, other):
    one, other = Safetensors(one), Safetensors(other)
    assert one.names == other.names
    for name in one.names:
        assert one.dtype(name) == other.dtype(name) and one.read(name).tobytes() == other.read(name).tobytes()


def test_what_was_imported_is_exported_bit_for_bit(imported, tmp_path, capsys):
    model, run = imported
    assert main(["export", f"--checkpoint={run}", f"--to={tmp_path / 'out'}"]) == 0
    assert "llama" in capsys.readouterr().out
    same_tensors(model, tmp_path / "out")
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "out" / name).read_text()) == json.loads((model / name).read_text())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (model / name).read_bytes()


def test_a_checkpoint_from_elsewhere_is_sampled_trained_and_exported(imported, tmp_path, capsys):
    model, run = imported
    assert main(["sample", f"--checkpoint={run}", "--prompt=ab", "--temperature=0", "--max_new_tokens=4"]) == 0
    said = capsys.readouterr().out.strip()
    assert set(said) <= set("abcdefghijklmnopqrstu ")
    rows = [{"messages": [{"role": "user", "content": "abc"}, {"role": "assistant", "content": "cba"}]}] * 8
    source = dict(path=str(tiny_stages.jsonl(tmp_path / "rows.jsonl", rows)), shape="messages")
    config = tiny_stages.config("sft", init_from=str(run), data=dict(train=[source], dev=[source]))
    done = train_stage(config, tmp_path / "sft")
    assert done["after"]["nll"] < done["before"]["nll"]
    assert main(["export", f"--checkpoint={tmp_path / 'sft'}", f"--to={tmp_path / 'out'}", "--dtype=float32"]) == 0
    files = Safetensors(tmp_path / "out")
    moved = files.read("model.norm.weight") - weight("model.norm.weight", (16,)).astype(ml_dtypes.bfloat16)
    assert files.dtype("model.norm.weight") == np.float32 and 0 < np.abs(moved).max() < 0.1
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["dtype"] == "float32" and written["model_type"] == "llama"


EXPERTS = dict(mlp="experts", num_experts=3, experts_per_token=2)


@pytest.mark.parametrize("name, changes", [("llama", {}), ("qwen3", dict(qk_norm=True)), ("mixtral", EXPERTS),
                                           ("qwen3_moe", EXPERTS | dict(qk_norm=True, normalize_experts=False))])
def test_a_model_trained_here_is_exported_as_a_published_one_and_comes_back(name, changes, tmp_path):
    workdir = tiny_stages.trained("pretrain")
    if changes:
        workdir = tmp_path / "trained"
        train_stage(tiny_stages.config("pretrain", model=tiny_stages.MODEL | changes, steps=1), workdir)
    assert main(["export", f"--checkpoint={workdir}", f"--to={tmp_path / 'out'}"]) == 0
    written, generation = (json.loads((tmp_path / "out" / f"{file}.json").read_text()) for file in ("config", "generation_config"))
    ends = {"bos_token_id": 2, "eos_token_id": list(load_tokenizer(tiny_stages.TOKENIZER).stop_ids), "pad_token_id": 0}
    assert written["model_type"] == name and written | ends == written and generation == ends
    assert main(["import", f"--from={tmp_path / 'out'}", f"--to={tmp_path / 'run'}"]) == 0
    _, before = read_meta(workdir)
    _, after = read_meta(tmp_path / "run")
    assert before["model"] == after["model"]
    assert main(["export", f"--checkpoint={tmp_path / 'run'}", f"--to={tmp_path / 'again'}"]) == 0
    same_tensors(tmp_path / "out", tmp_path / "again")


def test_a_scale_of_the_embedding_goes_into_it_where_nothing_else_is_tied_to_it(tmp_path):
    """The quickstart's model is one: Qwen 3 has no such scale."""
    changes = dict(qk_norm=True, tied_embeddings=False, embed_scale=5.0)
    train_stage(tiny_stages.config("pretrain", model=tiny_stages.MODEL | changes, steps=1), tmp_path / "trained")
    assert main(["export", f"--checkpoint={tmp_path / 'trained'}", f"--to={tmp_path / 'out'}", "--dtype=bfloat16"]) == 0
    assert main(["import", f"--from={tmp_path / 'out'}", f"--to={tmp_path / 'run'}"]) == 0
    ours, theirs = (Assistant.load(tmp_path / name) for name in ("trained", "run"))
    embed = [np.asarray(each.params["embed"].get_value()) for each in (ours, theirs)]
    np.testing.assert_array_equal((5 * embed[0]).astype(ml_dtypes.bfloat16).astype(np.float32), embed[1])
    assert read_meta(tmp_path / "run")[1]["model"]["embed_scale"] == 1.0


def test_where_it_is_tied_too_what_scores_the_next_token_becomes_a_matrix_of_its_own(tmp_path):
    changes = dict(tied_embeddings=True, embed_scale=5.0)
    train_stage(tiny_stages.config("pretrain", model=tiny_stages.MODEL | changes, steps=1), tmp_path / "trained")
    assert main(["export", f"--checkpoint={tmp_path / 'trained'}", f"--to={tmp_path / 'out'}"]) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    assert main(["import", f"--from={tmp_path / 'out'}", f"--to={tmp_path / 'run'}"]) == 0
    tokens = np.random.default_rng(0).integers(4, 200, (2, 12)).astype(np.int32)
    logits = []
    for name in ("trained", "run"):
        each = Assistant.load(tmp_path / name)
        module = nnx.merge(each.graphdef, each.params)
        logits.append(logits_of(module(tokens, np.arange(12)[None].repeat(2, 0), np.ones_like(tokens)), module.unembedding_DV, module.softcap))
    np.testing.assert_allclose(*logits, rtol=0, atol=2e-5)
    assert np.abs(logits[0]).max() > 0.1


CLOSES = TEMPLATE.replace("eos_token", "'<|e|>'").replace("{% endif %}", "{% else %}{{ eos_token }}{% endif %}")


def test_what_ends_a_text_behind_its_last_turn_is_no_pad_token_of_a_classifier(tmp_path, capsys):
    """As Phi-3's, where it is: transformers would score the token before it, and a reward model here reads it."""
    model = published(tmp_path / "model", vocab_size=25, pad_token_id=1, tokenizer={
        "template": CLOSES, "pad_token": "<|end|>", "more": ["<|e|>"]})
    t = read_folder(with_tokens(model, (24, "<|e|>", True)))
    assert (t.piece(t.end_id), t.tail_ids, t.pad_id) == ("<|e|>", [1], 1)
    assert main(["import", f"--from={model}", f"--to={tmp_path / 'run'}"]) == 0
    data = tiny_stages.jsonl(tmp_path / "pairs.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 8)
    config = tiny_stages.config("reward", init_from=str(tmp_path / "run"), steps=1,
                                data=dict(train=[dict(path=str(data), shape="pairs")], dev=[]))
    config.tokenizer = ""
    train_stage(config, tmp_path / "reward")
    assert main(["export", f"--checkpoint={tmp_path / 'reward'}", f"--to={tmp_path / 'out'}"]) == 0
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["pad_token_id"] == 0
    (tmp_path / "out" / "config.json").write_text(json.dumps(written | {"pad_token_id": 1}))
    assert main(["import", f"--from={tmp_path / 'out'}", f"--to={tmp_path / 'back'}"]) == 2
    assert "pad_token_id=1 is '<|end|>', which ends a conversation" in capsys.readouterr().err


def test_a_reward_model_with_learned_places_reads_as_many_tokens_as_it_has_places(tmp_path):
    assert main(["import", f"--from={published(tmp_path / 'model', 'gpt2')}", f"--to={tmp_path / 'run'}"]) == 0
    data = tiny_stages.jsonl(tmp_path / "pairs.jsonl", [{"prompt": "abc", "chosen": "b" * 40, "rejected": "c" * 40}] * 8)
    config = tiny_stages.config("reward", init_from=str(tmp_path / "run"), steps=1, length=32,
                                data=dict(train=[dict(path=str(data), shape="pairs")], dev=[], truncate="right"))
    config.tokenizer = ""
    with pytest.raises(ConfigError, match="reward: config.length=32 takes 33 places, the model has learned 32"):
        train_stage(config, tmp_path / "none")
    config.length = 31
    train_stage(config, tmp_path / "reward")
    assert np.isfinite(losses(tmp_path / "reward")).all() and losses(tmp_path / "reward")
    reward = RewardModel.load(tmp_path / "reward")
    talk = [{"role": "user", "content": "abc"}]
    room = 32 - len(reward._written(talk, "")[0])
    assert np.isfinite(reward.score_responses([talk] * 2, ["b", "b" * room])).all()
    with pytest.raises(ConfigError, match="a response with its prompt takes 33 places, the model has learned 32"):
        reward.score_responses([talk], ["b" * (room + 1)])


@pytest.mark.parametrize("template", ["<|im_start|>", "{{ '<|im_' ~ 'start|>' }}"])
def test_tokens_that_the_template_writes_need_a_row(template, tmp_path, capsys):
    model = published(tmp_path / "model", tokenizer={"template": template + TEMPLATE.replace("eos_token", "'<|im_end|>'")})
    with_tokens(model, (24, "<|im_start|>", True), (25, "<|im_end|>", True))
    assert main(["import", f"--from={model}", f"--to={tmp_path / 'run'}"]) == 2
    assert "the tokenizer has 26 tokens, the model embeds 24" in capsys.readouterr().err


def test_a_stray_id_is_another_models_whatever_it_is(tmp_path, capsys):
    model = with_tokens(published(tmp_path / "model"), *((24 + n, f"<more{n}>", True) for n in range(81)))
    assert main(["import", f"--from={model}", f"--to={tmp_path / 'run'}"]) == 2
    assert "the tokenizer has 105 tokens, the model embeds 24" in capsys.readouterr().err


@pytest.mark.parametrize("special", [True, False])
def test_a_special_token_behind_all_others_that_no_text_uses_needs_no_row(special, tmp_path, capsys):
    """As the picture's of Gemma 3 1B, which sees none; a piece of text there is another model's."""
    model = with_tokens(published(tmp_path / "model"), (24, "<image>", special))
    assert main(["import", f"--from={model}", f"--to={tmp_path / 'run'}"]) == (0 if special else 2)
    if special:
        config = tiny_stages.config("sft", init_from=str(tmp_path / "run"), steps=1)
        config.tokenizer = ""
        train_stage(config, tmp_path / "tuned")
        assert np.isfinite(losses(tmp_path / "tuned")).all() and losses(tmp_path / "tuned")
    else:
        assert "the tokenizer has 25 tokens, the model embeds 24" in capsys.readouterr().err


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_a_tokenizer_trained_here_gives_the_same_ids_where_it_is_exported_to(model_type):
    """As transformers reads it: one text for a talk, which its template wrote, special tokens in it."""
    import tokenizers

    texts = [*tiny_stages.TEXTS, "Numbers as 12 + 7 = 19, names as Zo\u00eb;  two spaces, <unk> and <0x41>.\n\tA tab.", "caf\u00e9 \u4e2d\u6587"] * 3
    ours = train_tokenizer(texts, vocab_size=400, model_type=model_type)
    theirs = tokenizers.Tokenizer.from_str(sentencepiece_json(ours.model_bytes, "<s>").decode())
    draw = np.random.default_rng(0)
    parts = "The fox| is|  red|\n|12|\u00eb|\U0001f642|\u00a0|<unk>|</s|<|ca|f\u00e9|.|,| |\t".split("|")
    for text in ["", " ", "The fox", *("".join(draw.choice(parts, 9)) for _ in range(300))]:
        ids = ours.encode(text)
        assert theirs.encode(text, add_special_tokens=False).ids == ids and theirs.encode(text).ids == [ours.bos_id, *ids]
        assert theirs.decode(ids) == ours.decode(ids) == text
    talk = [{"role": "user", "content": "The fox?\n"}, {"role": "assistant", "content": " Yes,  12."}]
    written = "<s><|user|>The fox?\n<|end|><|assistant|> Yes,  12.<|end|>"
    assert theirs.encode(written, add_special_tokens=False).ids == render(talk, ours)[0]


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_t17_what_spells_a_special_token_is_none_after_an_export_either(model_type):
    """Where a letter of its name is in no piece, a unigram would find the token itself likelier."""
    ours = train_tokenizer(["The fox is red and the river is deep, as ever."] * 4, vocab_size=300, model_type=model_type)
    assert ours.encode("<")[-1] == 9 + ord("<")  # a byte
    back = PublishedTokenizer(pack_files(tokenizer_files({"tokenizer": pack_tokenizer(ours.model_bytes), "lineage": []}, ours)))
    for text in (*ours.chat_ids, "</s>", "<pad>", "red <|end|><|assistant|> fox <s>"):
        ids = back.encode(text)
        assert not back.special_ids & set(ids) and back.decode(ids) == text
    talk = [{"role": "user", "content": "red <|end|><|assistant|> fox"}, {"role": "assistant", "content": "deep"}]
    assert [i for i in render(talk, back)[0] if i in back.special_ids] == [i for i in render(talk, ours)[0] if i in ours.special_ids]


def test_a_sentencepiece_model_of_another_make_is_exported_as_it_is():
    import io

    import sentencepiece

    import tokenizers

    for more in (dict(add_dummy_prefix=False), dict(normalization_rule_name="nmt_nfkc"), dict(user_defined_symbols=["fox"]),
                 dict(byte_fallback=False), dict(remove_extra_whitespaces=True)):
        made = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(**(dict(
            sentence_iterator=iter(["The fox is red."] * 5), model_writer=made, vocab_size=300, hard_vocab_limit=False, byte_fallback=True,
            normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2) | more))
        tokenizer = open_tokenizer(made.getvalue())
        files = tokenizer_files({"tokenizer": pack_tokenizer(tokenizer.model_bytes), "lineage": []}, tokenizer)
        if "add_dummy_prefix" in more:
            theirs = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
            for text in ("The fox", " is  red.", "caf\u00e9\n"):
                assert theirs.encode(text, add_special_tokens=False).ids == tokenizer.encode(text)
        else:
            assert set(files) == {"tokenizer.model", "tokenizer_config.json"}, more


def test_a_classifier_is_a_reward_model(tmp_path):
    model = published(tmp_path / "model", "llama, classifier")
    assert main(["import", f"--from={model}", f"--to={tmp_path / 'run'}"]) == 0
    _, meta = read_meta(tmp_path / "run")
    assert meta["policy"] == "reward/backbone" and meta["pooling"] == "last"
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 4
    data = tiny_stages.jsonl(tmp_path / "pairs.jsonl", rows)
    assert main(["evaluate", f"--checkpoint={tmp_path / 'run'}", f"{data}:pairs"]) == 0
    assert main(["export", f"--checkpoint={tmp_path / 'run'}", f"--to={tmp_path / 'out'}"]) == 0
    same_tensors(model, tmp_path / "out")
    # By which transformers finds the last token of a row in a batch.
    assert json.loads((tmp_path / "out" / "config.json").read_text())["pad_token_id"] is not None


def test_a_classifiers_pad_token_ends_no_text(tmp_path):
    """transformers scores the last token that is no padding: were that the end of a turn, it would be the one before."""
    model = tmp_path / "model"
    model.mkdir()
    write_model(model, {k: v for k, v in config_of("llama").items() if k != "pad_token_id"} | {"bos_token_id": None})
    write_tokenizer(model, bos_token=None, pad_token="<|end|>")
    (model / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<|end|>", "pad_token": "<|end|>"}))
    assert main(["import", f"--from={model}", f"--to={tmp_path / 'run'}"]) == 0
    data = tiny_stages.jsonl(tmp_path / "pairs.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 4)
    train_stage(tiny_stages.config("reward", init_from=str(tmp_path / "run"), steps=1, data=dict(
        train=[dict(path=str(data), shape="pairs")], dev=[])), tmp_path / "reward")
    assert main(["export", f"--checkpoint={tmp_path / 'reward'}", f"--to={tmp_path / 'out'}"]) == 0
    tokenizer, config = read_folder(tmp_path / "out"), json.loads((tmp_path / "out" / "config.json").read_text())
    assert tokenizer.end_id == 1 and config["pad_token_id"] == tokenizer.pad_id == 0
    assert json.loads((tmp_path / "out" / "special_tokens_map.json").read_text())["pad_token"] == "<|text|>"
    assert main(["import", f"--from={tmp_path / 'out'}", f"--to={tmp_path / 'again'}"]) == 0


def test_a_classifier_that_was_not_trained_keeps_its_own_pad_token(tmp_path):
    model = published(tmp_path / "model", "llama, classifier")
    for pad in (-1, 5, 99):
        (model / "config.json").write_text(json.dumps(config_of("llama, classifier") | {"pad_token_id": pad}))
        assert main(["import", f"--from={model}", f"--to={tmp_path / f'run{pad}'}"]) == 0
        assert main(["export", f"--checkpoint={tmp_path / f'run{pad}'}", f"--to={tmp_path / f'out{pad}'}"]) == 0
        assert json.loads((tmp_path / f"out{pad}" / "config.json").read_text())["pad_token_id"] == pad
        for name in ("tokenizer.json", "tokenizer_config.json"):
            assert (tmp_path / f"out{pad}" / name).read_bytes() == (model / name).read_bytes()


def test_a_model_published_without_a_template_takes_along_the_one_that_it_was_trained_with(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    write_model(model, config_of("llama"))
    write_tokenizer(model, template="")
    assert main(["import", f"--from={model}", f"--to={tmp_path / 'run'}"]) == 0
    rows = tiny_stages.jsonl(tmp_path / "rows.jsonl", [{"prompt": "a", "answer": "b"}] * 4)
    train_stage(tiny_stages.config("sft", init_from=str(tmp_path / "run"), steps=1, data=dict(
        train=[dict(path=str(rows), shape="prompt_response")], dev=[])), tmp_path / "sft")
    for run, there in (("run", False), ("sft", True)):
        out = tmp_path / f"out_{run}"
        assert main(["export", f"--checkpoint={tmp_path / run}", f"--to={out}"]) == 0
        assert (out / "chat_template.jinja").exists() == there
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert render(talk, read_folder(tmp_path / "out_sft")) == render(talk, read_folder(model))


@pytest.mark.parametrize("case, name", [("llama, llama3 rope, tied", "lm_head.weight"), ("gpt2", "lm_head.weight")])
def test_copies_masks_and_short_names_of_old_files(case, name, tmp_path):
    """GPT-2 was published without its names' first part and with masks; a tied head may be written twice."""
    model = published(tmp_path / "model", case)
    files = Safetensors(model)
    old = {n.removeprefix("transformer."): files.read(n) for n in files.names}
    embedding = next(n for n in old if "embed" in n or n == "wte.weight")
    old[name] = old[embedding]
    kept = dict(old)
    old["h.0.attn.bias"] = np.ones((1, 1, 4, 4), np.uint8)
    write(model, {n: (x.dtype, x.shape) for n, x in old.items()}, old.get)
    assert main(["import", f"--from={model}", f"--to={tmp_path / 'run'}"]) == 0
    assert main(["export", f"--checkpoint={tmp_path / 'run'}", f"--to={tmp_path / 'out'}"]) == 0
    back = Safetensors(tmp_path / "out")
    assert back.names == set(kept)
    assert all(back.read(n).tobytes() == x.tobytes() for n, x in kept.items())


@pytest.mark.parametrize("rows, told", [(24, False), (25, False), (26, True)])
def test_a_tokenizer_that_leaves_much_of_the_embedding_unused_is_told_of(rows, told, tmp_path, capsys):
    model = published(tmp_path / "model", vocab_size=rows)
    assert main(["import", f"--from={model}", f"--to={tmp_path / 'run'}"]) == 0
    said = capsys.readouterr().out
    assert (f"the tokenizer has 24 tokens, the embedding {rows} rows" in said) == told


def test_ids_that_are_no_words_are_let_in():
    """Several ends, as Llama 3 has; a token that was added and is not called special; rows that are padding (Qwen 2.5)."""
    pieces = ["<s>", "</s>", "a", "b", "<|eot|>", "EOM"]
    spec = json.loads(byte_level_json({t: i for i, t in enumerate(pieces)}, [], pieces[:2]))
    spec["added_tokens"].append(dict(spec["added_tokens"][0], id=5, content="EOM", special=False))
    for bos in ("<s>", None):
        names = {"bos_token": bos, "eos_token": "</s>"}
        tokenizer = PublishedTokenizer(pack_files({
            "tokenizer.json": json.dumps(spec).encode(), "tokenizer_config.json": json.dumps(names).encode()}))
        for ends in (None, 1, [1, 4, 5, 6, 99, -1]):
            check_ids({"bos_token_id": 1, "eos_token_id": ends}, tokenizer, "model")
        check_ids({}, tokenizer, "model")
    check_ids({"bos_token_id": 2}, tokenizer, "model")  # of which the tokenizer knows nothing
    with pytest.raises(CheckpointError, match="model: config.json has eos_token_id=3, which is 'b'"):
        check_ids({"eos_token_id": [1, 3]}, tokenizer, "model")


def test_the_ids_of_a_sentencepiece_model_are_looked_at(shared_data):
    data = (shared_data / "tokenizers" / "mistral_v1.model").read_bytes()
    tokenizer = PublishedTokenizer(pack_files({
        "tokenizer.model": data, "tokenizer_config.json": b'{"bos_token": "<s>", "eos_token": "</s>"}'}))
    check_ids({"bos_token_id": 1, "eos_token_id": [2, 0, 13]}, tokenizer, "mistral")  # 13 is the byte of a line's end
    with pytest.raises(CheckpointError, match="eos_token_id=1000, which is"):
        check_ids({"eos_token_id": 1000}, tokenizer, "mistral")


def test_nothing_is_written_over(imported, tmp_path, capsys):
    model, run = imported
    assert main(["import", f"--from={model}", f"--to={run}"]) == 2
    assert "there is something already" in capsys.readouterr().err
    assert main(["export", f"--checkpoint={run}", f"--to={model}"]) == 2
    assert "there is something already" in capsys.readouterr().err
    assert main(["import", f"--from={tmp_path / 'nowhere'}", f"--to={tmp_path / 'run'}"]) == 2
    assert "no such file or folder" in capsys.readouterr().err
