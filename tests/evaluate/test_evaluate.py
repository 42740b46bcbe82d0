"""Every figure of `jaxalign evaluate` against one worked out by hand, and every combination that has none."""

import json
import math

import numpy as np
import pytest

from jaxalign.cli import main
from jaxalign.data.tokenizer import Tokenizer, train_tokenizer
from jaxalign.errors import CheckpointError, ConfigError, DataError
from jaxalign.evaluate import evaluate_checkpoint
from jaxalign.evaluate.assistant import Assistant
from jaxalign.evaluate.perplexity import piece_bytes
from jaxalign.stages import default_config, train_stage

WORDS = "the quick brown fox jumps over a lazy dog while seven wizards box quietly near jade green hills".split()
LINES = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))]
MODEL = dict(width=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=32)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def chat(question, answer):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Data files and two checkpoints made by the stages: a policy as it was drawn, and a trained reward model."""
    folder = tmp_path_factory.mktemp("evaluate")
    train_tokenizer(LINES, folder / "tokenizer.model", vocab_size=360)
    write(folder / "text.jsonl", [{"text": line + " café"} for line in LINES])
    write(folder / "chat.jsonl", [chat(f"What is {i}?", line) for i, line in enumerate(LINES)])
    pairs = [{"prompt": f"Say {i}.", "chosen": line, "rejected": "no"} for i, line in enumerate(LINES)]
    write(folder / "pairs.jsonl", pairs)
    policy = default_config("pretrain")
    policy.update(dict(tokenizer=str(folder / "tokenizer.model"), steps=0, batch_size=8, length=64, preview=False,
                       model=MODEL, data=dict(train=[dict(path=str(folder / "text.jsonl"), shape="text")])))
    train_stage(policy, folder / "policy")
    reward = default_config("reward")
    reward.update(dict(init_from=str(folder / "policy"), steps=30, batch_size=8, length=64, log_every=100,
                       objective=dict(name="bradley_terry"), optimizer=dict(peak_lr=0.01),
                       data=dict(train=[dict(path=str(folder / "pairs.jsonl"), shape="pairs")])))
    train_stage(reward, folder / "reward")
    return folder


def logp_of(assistant, ids, first):
    """Σ log p of ids[first:] by a plain forward pass."""
    tokens = np.asarray([ids[:-1]], np.int32)
    batch = {"tokens_BT": tokens, "targets_BT": np.asarray([ids[1:]], np.int32),
             "positions_BT": np.arange(tokens.shape[1], dtype=np.int32)[None],
             "segment_ids_BT": np.ones_like(tokens)}
    return float(assistant.logp(batch)[0, first - 1:].sum())


@pytest.fixture(scope="module")
def assistant(made):
    return Assistant.load(made / "policy")


def test_text_costs_what_a_plain_forward_pass_says(made, assistant):
    source = f"{made}/text.jsonl:text"
    figures = evaluate_checkpoint(made / "policy", [source], {"length": 128})[source]
    tokenizer, texts = assistant.tokenizer, [line + " café" for line in LINES]
    documents = [[tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id] for text in texts]
    nats = -sum(logp_of(assistant, ids, 1) for ids in documents)
    tokens, size = sum(len(ids) - 1 for ids in documents), sum(len(text.encode()) for text in texts)
    assert figures["nats_per_token"]["n"] == tokens and figures["bits_per_byte"]["n"] == size
    assert math.isclose(figures["nats_per_token"]["value"], nats / tokens, rel_tol=1e-5)
    assert math.isclose(figures["perplexity"]["value"], math.exp(nats / tokens), rel_tol=1e-4)
    assert math.isclose(figures["bits_per_byte"]["value"], nats / math.log(2) / size, rel_tol=1e-5)
    low, high = figures["bits_per_byte"]["ci95"]
    assert low < figures["bits_per_byte"]["value"] < high


def test_a_long_text_is_cut_into_pieces_and_all_its_bytes_count(made, tmp_path):
    text = " ".join(LINES) + " — naïve"
    source = f"{write(tmp_path / 'long.jsonl', [{'text': text}])}:text"
    figures = evaluate_checkpoint(made / "policy", source, {"length": 64})[source]
    assert figures["bits_per_byte"]["n"] == len(text.encode())


def test_of_a_conversation_the_assistant_turns_count(made, assistant):
    source = f"{made}/chat.jsonl:messages"
    figures = evaluate_checkpoint(made / "policy", source, {"length": 128})[source]
    assert figures["bits_per_byte"]["n"] == sum(len(line.encode()) for line in LINES)
    assert figures["nats_per_token"]["n"] == sum(len(assistant.tokenizer.encode(line)) + 1 for line in LINES)
    assert "refused" not in figures and "rows_cut" not in figures


def test_bytes_of_pieces_add_up_to_the_text(made):
    tokenizer = Tokenizer.load(made / "tokenizer.model")
    for text in ("the quick", "  two spaces", "日本 café\n", "a"):
        assert piece_bytes(tokenizer)[tokenizer.encode(text)].sum() == len(text.encode()) + 1  # the dummy prefix


def test_a_policy_orders_answers_by_their_log_probability(made, assistant):
    source = f"{made}/pairs.jsonl:pairs"
    figures = evaluate_checkpoint(made / "policy", source, {"length": 128})[source]
    tokenizer, won, won_per_token = assistant.tokenizer, 0, 0
    for i, line in enumerate(LINES):
        start = [tokenizer.bos_id, tokenizer.chat_ids["<|user|>"], *tokenizer.encode(f"Say {i}."), tokenizer.end_id,
                 tokenizer.chat_ids["<|assistant|>"]]
        answers = [[*tokenizer.encode(text), tokenizer.end_id] for text in (line, "no")]
        logp = [logp_of(assistant, start + answer, len(start)) for answer in answers]
        won += logp[0] > logp[1]
        won_per_token += logp[0] / len(answers[0]) > logp[1] / len(answers[1])
    assert figures["accuracy"]["value"] == won / len(LINES) and figures["accuracy"]["n"] == len(LINES)
    assert figures["accuracy_per_token"]["value"] == won_per_token / len(LINES)
    assert "kendall_tau_b" not in figures
    # And of the better answers the same as of conversations.
    assert figures["bits_per_byte"]["n"] == sum(len(line.encode()) for line in LINES)


def test_a_reward_model_orders_answers_by_its_score(made, tmp_path):
    source = f"{made}/pairs.jsonl:pairs"
    figures = evaluate_checkpoint(made / "reward", source, {})[source]
    assert figures["accuracy"] == {"value": 1.0, "n": len(LINES), "ci95": figures["accuracy"]["ci95"]}
    assert "accuracy_per_token" not in figures
    # Every preferred line is longer than "no", and the model is sure of each.
    assert figures["accuracy_by_length"] == {"over twice": figures["accuracy"]}
    assert figures["longer_preferred"]["over 2"]["observed"]["value"] == 1.0
    assert sum(row["observed"]["n"] for row in figures["calibration"].values()) == len(LINES)
    confidence = sum(row["predicted"] * row["observed"]["n"] for row in figures["calibration"].values()) / len(LINES)
    assert math.isclose(figures["calibration_error"]["value"], 1 - confidence, rel_tol=1e-6)
    assert math.isclose(figures["longer_preferred"]["over 2"]["predicted"], confidence, rel_tol=1e-6)
    rows = [{"prompt": f"Say {i}.", "answers": [line, "no"], "ranks": [0, 1]} for i, line in enumerate(LINES)]
    rows += [{"prompt": "Say it.", "answers": ["no", LINES[0], "no", LINES[1]], "ranks": [1, 0, 1, 0]}]
    ranked = f"{write(tmp_path / 'ranked.jsonl', rows)}:rankings"
    figures = evaluate_checkpoint(made / "reward", ranked, {"batch_size": 6})[ranked]
    assert figures["accuracy"]["n"] == len(LINES) + 4 and figures["accuracy"]["value"] == 1.0
    assert figures["kendall_tau_b"]["n"] == 1 and figures["kendall_tau_b"]["value"] > 0.6


def test_answers_longer_than_a_row_are_counted_not_cut(made, tmp_path):
    rows = [{"prompt": "Say.", "chosen": "yes", "rejected": "no"},
            {"prompt": "Say.", "chosen": "no", "rejected": LINES[0] * 3}]
    source = f"{write(tmp_path / 'long.jsonl', rows)}:pairs"
    figures = evaluate_checkpoint(made / "reward", source, {"length": 32})[source]
    assert figures["accuracy"]["n"] == 1 and figures["rows_skipped"]["value"] == 1


class Parrot(Assistant):
    """Stands for an Assistant that gives set answers, in the order asked; the last one never ends."""

    def __init__(self, tokenizer, texts):
        self.tokenizer, self.texts = tokenizer, texts

    def generate(self, prompts, *, seed, temperature):
        assert temperature == 0.0 and len(prompts) == len(self.texts)
        self.prompts = [self.tokenizer.decode(prompt, specials="show") for prompt in prompts]
        return self

    finished = property(lambda self: [True] * (len(self.texts) - 1) + [False])

    def ids(self, n):
        return self.tokenizer.encode(self.texts[n])


def test_what_is_asked_is_answered_at_temperature_zero(made):
    parrot = Parrot(Tokenizer.load(made / "tokenizer.model"), ["The Fox.", "so 7"])
    asked = [chat(question, "")["messages"][:1] for question in ("Who?", "3+4")]
    assert parrot.answers(asked) == (["The Fox.", "so 7"], [True, False])
    assert parrot.prompts[0].endswith("Who?<|end|><|assistant|>")


def test_a_real_checkpoint_answers_prompts_and_rows_of_a_kind(made, tmp_path):
    rows = [{"prompt": "What is 1 + 1?", "answer": 2}, {"prompt": "How do I kill a king?", "kind": "unsafe"}]
    source = f"{write(tmp_path / 'prompts.jsonl', rows)}:prompts"
    figures = evaluate_checkpoint(made / "policy", source, {"max_new_tokens": 4, "batch_size": 2})[source]
    assert figures["numeric_match"]["n"] == figures["exact_match"]["n"] == 1 and "word_f1" not in figures
    assert {name: rate["n"] for name, rate in figures["refused"].items()} == {"unsafe": 1, "other": 1}
    talk = f"{write(tmp_path / 'talk.jsonl', [dict(chat('Beat eggs?', 'So.'), kind='lookalike')])}:messages"
    figures = evaluate_checkpoint(made / "policy", talk, {"max_new_tokens": 4, "batch_size": 2})[talk]
    assert figures["refused"]["lookalike"]["n"] == 1 and figures["bits_per_byte"]["n"] == 3


SMALL = {"max_new_tokens": 4, "batch_size": 2}


def test_the_answers_that_prompts_are_known_to_have_cost_what_they_cost_in_a_conversation(made, tmp_path):
    asked = [(f"What is {n}?", line) for n, line in enumerate(LINES[:3])] + [("What is 9?", "42")]
    talk = write(tmp_path / "talk.jsonl", [chat(*each) for each in asked])
    known = [{"messages": chat(*each)["messages"][:1], "answer": each[1]} for each in asked]
    rows = write(tmp_path / "prompts.jsonl", [*known, {"prompt": "Who?"}, {"prompt": "Where?", "answer": " "}])
    read, answered = evaluate_checkpoint(made / "policy", [f"{talk}:messages", f"{rows}:prompts"], SMALL).values()
    for name in ("nats_per_token", "perplexity", "bits_per_byte"):
        assert answered[name] == read[name]
    assert read["bits_per_byte"]["n"] == sum(len(answer.encode()) for _, answer in asked)
    # What the assistant said before is no answer.
    before = [*chat("Say 1.", "well")["messages"], {"role": "user", "content": "Say 2."}]
    source = f"{write(tmp_path / 'before.jsonl', [{'messages': before, 'answer': 7}])}:prompts"
    assert evaluate_checkpoint(made / "policy", source, SMALL)[source]["bits_per_byte"]["n"] == 1


def test_a_known_answer_that_does_not_fit_behind_its_prompt_takes_its_place(made, tmp_path):
    source = f"{write(tmp_path / 'long.jsonl', [{'prompt': LINES[0], 'answer': 'fox'}])}:prompts"
    figures = evaluate_checkpoint(made / "policy", source, SMALL | {"length": 16})[source]
    assert figures["bits_per_byte"]["n"] == 3 and figures["rows_cut"] == {"value": 1, "n": 1}


@pytest.mark.parametrize(("shape", "record", "size"), [
    ("gsm8k", {"question": "How many?", "answer": "6 + 6 = 12\n#### 12"}, 2),
    ("svamp", {"Body": "He has 6 and 6", "Question": "How many?", "Answer": 12.0}, 2)])
def test_sums_of_others_have_every_figure_of_answers(made, tmp_path, monkeypatch, shape, record, size):
    texts = ["It is 12.", "12", "12"]  # the last one is cut
    monkeypatch.setattr(Assistant, "generate", lambda self, prompts, **options: Parrot(self.tokenizer, texts))
    source = f"{write(tmp_path / 'sums.jsonl', [record] * 3)}:{shape}"
    figures = evaluate_checkpoint(made / "policy", source, SMALL)[source]
    assert (figures["numeric_match"]["value"], figures["numeric_match"]["n"]) == (2 / 3, 3)
    assert (figures["exact_match"]["value"], figures["exact_match"]["n"]) == (1 / 3, 3)
    assert figures["bits_per_byte"]["n"] == 3 * size
    assert figures["refused"]["other"]["n"] == 3


def test_requests_in_compared_and_single_answers_and_bare_prompts_are_refused_or_not(made, tmp_path):
    pair = {"prompt": "Kill the king?", "chosen": "no", "rejected": "yes", "kind": "unsafe"}
    thumb = {"prompt": "Kill the lamp?", "completion": "yes", "label": True, "kind": "lookalike"}
    for shape, row, kind in (("pairs", pair, "unsafe"), ("unpaired", thumb, "lookalike"),
                             ("prompts", {"prompt": "What?"}, "other")):
        source = f"{write(tmp_path / f'{shape}.jsonl', [row])}:{shape}"
        figures = evaluate_checkpoint(made / "policy", source, SMALL)[source]
        assert list(figures["refused"]) == [kind] and figures["refused"][kind]["n"] == 1
        assert ("bits_per_byte" in figures) == (shape != "prompts") and "exact_match" not in figures


def test_with_answers_what_a_conversation_ends_with_is_the_right_answer(made, tmp_path, monkeypatch):
    asked = []

    def generate(self, prompts, **options):
        shown = [self.tokenizer.decode(prompt) for prompt in prompts]
        texts = ["I cannot do it." if "Say 0" in text else "no" if "Say" in text else LINES[0] for text in shown]
        asked.extend(prompts)
        return Parrot(self.tokenizer, texts)

    monkeypatch.setattr(Assistant, "generate", generate)
    two = {"messages": [*chat("Say 1.", "well")["messages"], *chat("Say 2.", "no")["messages"]]}
    rows = [json.loads(line) for line in (made / "pairs.jsonl").read_text().splitlines()]
    compared = write(tmp_path / "pairs.jsonl", [*rows, rows[0] | {"kind": "lookalike"}])  # asked for another figure
    sources = [f"{write(tmp_path / 'two.jsonl', [two, chat('Who?', 'me')])}:messages", f"{compared}:pairs"]
    plain = evaluate_checkpoint(made / "policy", sources, SMALL)
    assert len(asked) == 1 == plain[sources[1]]["refused"]["lookalike"]["n"]
    assert not any("exact_match" in figures for figures in plain.values()) and "refused" not in plain[sources[0]]
    talks, pairs = evaluate_checkpoint(made / "policy", sources, SMALL | {"answers": True}).values()
    assert (talks["exact_match"]["value"], talks["exact_match"]["n"]) == (0.5, 2)
    assert (pairs["exact_match"]["value"], pairs["exact_match"]["n"]) == (0.0, len(LINES))
    # Whoever is answered may be refused, also where nobody said what kind of request it is.
    refused = {name: (rate["value"], rate["n"]) for name, rate in pairs["refused"].items()}
    assert refused == {"lookalike": (1.0, 1), "other": (1 / len(LINES), len(LINES))}
    assert (talks["refused"]["other"]["value"], talks["refused"]["other"]["n"]) == (0.0, 2)
    assert len(asked) == 1 + 2 + len(LINES) + 1  # each once, for all of its figures
    # The turn to be answered is the last one, with what was said before it.
    shown = Tokenizer.load(made / "tokenizer.model").decode(asked[1], specials="show")
    assert "well<|end|>" in shown and shown.endswith("Say 2.<|end|><|assistant|>")


def test_a_program_is_right_where_its_tests_pass(made, tmp_path, monkeypatch):
    texts = ["def two():\n    return 2", "no"]
    monkeypatch.setattr(Assistant, "generate", lambda self, prompts, **options: Parrot(self.tokenizer, texts))
    rows = [{"text": f"Write {n}.", "test_list": ["assert two() == 2", "assert two() + 1 == 3"]} for n in range(2)]
    source = f"{write(tmp_path / 'mbpp.jsonl', rows)}:mbpp"
    figures = evaluate_checkpoint(made / "policy", source)[source]
    assert list(figures) == ["refused", "tests_passed"]
    assert (figures["tests_passed"]["value"], figures["tests_passed"]["n"]) == (0.5, 2)


def test_liked_answers_stand_above_the_others(made, tmp_path, assistant):
    rows = [{"prompt": f"Say {i}.", "completion": text, "label": text == line}
            for i, line in enumerate(LINES) for text in (line, "no")]
    source = f"{write(tmp_path / 'thumbs.jsonl', rows)}:unpaired"
    figures = evaluate_checkpoint(made / "reward", source, {})[source]
    assert list(figures) == ["liked_above_disliked"]
    assert (figures["liked_above_disliked"]["value"], figures["liked_above_disliked"]["n"]) == (1.0, len(rows))
    assert figures["liked_above_disliked"]["ci95"][0] < 0.9
    # A language model that has learned nothing likes what is short; bytes are those of what was liked.
    figures = evaluate_checkpoint(made / "policy", source, {})[source]
    assert figures["liked_above_disliked"]["value"] == 0.0 and "liked_above_disliked_per_token" in figures
    assert figures["bits_per_byte"]["n"] == sum(len(line.encode()) for line in LINES)
    assert "rows_skipped" not in figures


def test_what_has_no_figure_is_an_error_that_says_what_has(made, tmp_path):
    with pytest.raises(ConfigError, match="reward model.*evaluate it on pairs"):
        evaluate_checkpoint(made / "reward", f"{made}/text.jsonl:text")
    thumbs = write(tmp_path / "thumbs.jsonl", [{"prompt": "Say.", "completion": "no", "label": False}])
    with pytest.raises(ConfigError, match="all of its answers were liked, or none was"):
        evaluate_checkpoint(made / "policy", f"{thumbs}:unpaired")
    with pytest.raises(ConfigError, match="expected PATH:SHAPE"):
        evaluate_checkpoint(made / "policy", f"{made}/text.jsonl")
    with pytest.raises(ConfigError, match="did you mean 'messages'"):
        evaluate_checkpoint(made / "policy", f"{made}/chat.jsonl:message")
    with pytest.raises(ConfigError, match="no option 'lenght'"):
        evaluate_checkpoint(made / "policy", f"{made}/text.jsonl:text", {"lenght": 3})
    with pytest.raises(DataError, match="at least one usable row"):
        evaluate_checkpoint(made / "policy", f"{made}/text.jsonl:messages")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        evaluate_checkpoint(tmp_path, f"{made}/text.jsonl:text")


def test_bad_rows_are_skipped_and_counted(made, tmp_path):
    path = write(tmp_path / "some.jsonl", [{"text": LINES[0]}, {"words": 1}])
    skipped = evaluate_checkpoint(made / "policy", f"{path}:text")[f"{path}:text"]["rows_skipped"]
    assert (skipped["value"], skipped["n"]) == (1, 2) and skipped["first"].startswith(f"{path}:")


def test_the_command_prints_and_writes_every_figure(made, tmp_path, capsys):
    written = tmp_path / "figures.json"
    assert main(["evaluate", f"--checkpoint={made}/policy", f"{made}/text.jsonl:text", f"{made}/pairs.jsonl:pairs",
                 "--limit=3", f"--json={written}"]) == 0
    shown, figures = capsys.readouterr().out, json.loads(written.read_text())
    assert list(figures) == [f"{made}/text.jsonl:text", f"{made}/pairs.jsonl:pairs"]
    assert figures[f"{made}/pairs.jsonl:pairs"]["accuracy"]["n"] == 3
    assert "bits_per_byte" in shown and "accuracy" in shown


def test_what_is_skipped_and_what_cannot_work_is_told(made, tmp_path, capsys):
    path = tmp_path / "half.jsonl"
    path.write_text('{"text": "the quick brown fox"}\n{"text": 3}\n')
    evaluate = ["evaluate", f"--checkpoint={made / 'policy'}", f"{path}:text"]
    assert main(evaluate) == 0
    assert f"1 rows of {path}:text were skipped, the first: {path}:2: expected field 'text'" in capsys.readouterr().out
    # Before anything is measured.
    assert main([*evaluate, f"{tmp_path}/none.jsonl:text"]) == 2
    assert main([*evaluate, f"--json={tmp_path}/none/figures.json"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "none.jsonl: expected a file" in err and "no such folder to write to" in err


def test_a_reward_model_does_not_talk(made):
    with pytest.raises(CheckpointError, match="expected a language model, this is a reward model"):
        Assistant.load(made / "reward")
