"""The miniature world keeps evaluation apart from training, by construction, and is the same for the same seed."""

import json
import re

import pytest

from jaxalign.data.world import World, deeds, facts, sums, talk, write_world
from jaxalign.data.world.lexicon import ATTRIBUTE_OF_VALUE, ATTRIBUTES, VALUES, is_name
from jaxalign.errors import ConfigError
from jaxalign.rewards.gold import judge

FILES = ("pretrain.train", "pretrain.dev", "tokenizer.train", "cloze.eval", "sft.train", "sft.dev", "align.train",
         "align.dev", "grpo.train", "eval")
ASKING = ("sft.train", "sft.dev", "align.train", "align.dev", "grpo.train")


def read(directory, name):
    return [json.loads(line) for line in (directory / f"{name}.jsonl").read_text("utf-8").splitlines()]


def spoken(row):
    """All text of a row that a model could be trained on."""
    return row.get("text") or " ".join(message["content"] for message in row["messages"])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    directory = tmp_path_factory.mktemp("world")
    manifest = write_world(directory, seed=3)
    return directory, manifest, {name: read(directory, name) for name in FILES}


@pytest.fixture(scope="module")
def world():
    return World(3)


def test_same_seed_same_bytes_and_another_seed_another_world(tmp_path):
    small = dict(num_entities=16, num_unknown=60, pretrain_characters=20_000, dev_documents=20,
                 sft={"fact": 60, "followup": 20, "unsafe": 20}, align={"fact": 40, "nonexistent": 20},
                 align_dev={"fact": 10}, evaluation={"fact": 40, "arithmetic": 20, "lookalike": 20}, grpo=20)
    one, again, other = (write_world(tmp_path / str(i), seed=seed, **small) for i, seed in enumerate((1, 1, 2)))
    assert one == again
    for name in FILES:
        assert (tmp_path / "0" / f"{name}.jsonl").read_bytes() == (tmp_path / "1" / f"{name}.jsonl").read_bytes()
    assert all(one["files"][name]["sha256"] != other["files"][name]["sha256"] for name in one["files"])


def test_enough_of_everything(written):
    _, manifest, rows = written
    kinds = manifest["files"]["eval.jsonl"]["kinds"]
    assert all(kinds[kind] >= 500 for kind in ("fact", "followup", "nonexistent", "arithmetic", "unsafe", "lookalike"))
    assert kinds["fact_asked"] == 200
    assert kinds["explanation"] == 5 * manifest["lands"]["heldout"] >= 350  # every land in every way
    assert 4000 <= len(rows["align.train"]) <= 6000 and len(rows["align.dev"]) >= 500
    assert 6000 <= len(rows["sft.train"]) <= 10_000
    questions = [spoken(row) for row in rows["eval"] if row["set"] == "fact"]
    assert len(set(questions)) == len(questions)


def test_heldout_lands_are_stated_but_never_asked(written, world):
    _, _, rows = written
    heldout = {land.name for land in world.of("heldout")}
    stated = set()
    for row in rows["pretrain.train"]:
        stated |= set(re.findall(r"\w+", row["text"])) & heldout
    assert stated == heldout
    for name in ASKING:
        for row in rows[name]:
            assert not heldout & set(re.findall(r"\w+", spoken(row))), (name, row)
    for row in rows["eval"]:
        if row["set"] in ("fact", "followup", "explanation"):
            assert row["entity"] in heldout


def test_every_fact_is_stated_in_many_ways(written, world):
    text = "\n".join(row["text"] for row in written[2]["pretrain.train"])
    ways = []
    for land in world.lands:
        for attribute in ATTRIBUTES:
            forms = facts.STATEMENTS[attribute]
            ways.append(sum(facts.fill(form, land.name, land.facts[attribute]) in text for form in forms))
    # Beside these: the sentences that go on with "its", and those that two lands share.
    assert min(ways) >= 4 and sum(ways) / len(ways) > 6.5 and sum(each >= 5 for each in ways) > 0.99 * len(ways)


def test_sft_never_asks_what_only_alignment_asks(written, world):
    align = {land.name for land in world.of("align")}
    for name in ("sft.train", "sft.dev"):
        assert not any(align & set(re.findall(r"\w+", spoken(row))) for row in written[2][name])


def test_the_prompts_that_measure_a_reward_model_are_held_out(written, world):
    rows = written[2]
    train = {spoken(row) for row in rows["align.train"]}
    assert not any(spoken(row) in train for row in rows["align.dev"] if row["kind"] != "smalltalk")
    asked = {
        (row["entity"], row["gold"]["attribute"]) for row in rows["align.dev"] if row["kind"] in ("fact", "followup")
    }
    values = {(land.name, key): value for land in world.lands for key, value in land.facts.items()}
    for row in rows["align.train"]:
        if row["kind"] in ("fact", "followup"):
            assert (row["entity"], row["gold"]["attribute"]) not in asked
            told = " ".join(message["content"] for message in row["messages"][:-1])
            for name in set(re.findall(r"\w+", told)) & {land.name for land in world.lands}:
                hidden = {values[key] for key in asked if key[0] == name}
                assert not hidden & set(re.findall(r"\w+", told)), row


def test_pretraining_never_answers_a_question(written):
    """Where something is asked no value, no refusal and no instruction stands: at most whether it may be asked."""
    imperatives = ("Tell me", "Please name", "Please tell", "Describe", "I would like", "Please help me")
    questions = 0
    for row in written[2]["pretrain.train"]:
        sentences = re.split(r"(?<=[.?!]) ", row["text"])
        asks = [each.endswith("?") or each.startswith(imperatives) for each in sentences]
        questions += sum(asks)
        if any(asks):
            words = re.findall(r"[a-z]+", row["text"].lower())
            assert not any(word in ATTRIBUTE_OF_VALUE for word in words), row
            assert not any(each.startswith(("To ", "I will", "I cannot", "I do not", "Sorry")) for each in sentences), row
        assert "<|" not in row["text"]
    assert questions > 1000


def test_unknown_names_are_disjoint_and_no_lands(written, world):
    _, _, rows = written
    lands = {land.name for land in world.lands}
    assert len(lands) == len(world.lands)
    everything = [name for names in world.unknown.values() for name in names]
    assert len(everything) == len(set(everything)) and not lands & set(everything)
    # Neither syllable tells: both kinds share most of them.
    assert len({name[:3] for name in everything} & {name[:3] for name in lands}) > 50
    held = set(world.unknown["eval"])
    for name in ("pretrain.train", "pretrain.dev", "tokenizer.train", *ASKING):
        assert not any(held & set(re.findall(r"\w+", spoken(row))) for row in rows[name])
    assert {row["entity"] for row in rows["eval"] if row["kind"] == "nonexistent"} <= held


def test_eval_sums_are_in_no_training_file(written):
    _, _, rows = written
    held = {frozenset(row["entity"].split("+")) for row in rows["eval"] if row["kind"] == "arithmetic"}
    assert len(held) >= 250  # a pair and its mirror image are one
    trained = set()
    for name in ("pretrain.train", "pretrain.dev", "tokenizer.train", *ASKING):
        for row in rows[name]:
            trained |= {frozenset(pair) for pair in re.findall(r"\b(\d\d)\+(\d\d)(?=[:=?.])", spoken(row))}
    assert len(trained) > 2000 and not held & trained


def test_deeds_are_held_out_as_combinations(written, world):
    train, held = world.deeds["train"], world.deeds["eval"]
    for deed in held + world.deeds["dev"]:
        assert any(other.verb == deed.verb and other.harmful == deed.harmful for other in train), deed
        assert any(other.object == deed.object and other.harmful == deed.harmful for other in train), deed
    harmless = [deed for deed in held if not deed.harmful]
    assert sum(map(deeds.look_alike, harmless)) > len(harmless) / 2
    phrases = {deed.text for deed in held}
    for name in ("pretrain.train", *ASKING):
        for row in written[2][name]:
            text = spoken(row)
            assert not any(re.search(rf"\b{phrase}\b", text) for phrase in phrases if phrase in text), row


def test_neither_verb_nor_object_decides():
    """Guessing by the verb alone, or the object alone, must stay clearly wrong for many deeds."""
    every = deeds.all_deeds()
    assert len({deed.verb for deed in every}) >= 25 and len({(deed.verb, deed.object) for deed in every}) == len(every)
    verbs = {deed.verb for deed in every if deed.harmful}
    objects = {deed.object for deed in every if deed.harmful}
    assert all(any(not deed.harmful and deed.verb == verb for deed in every) for verb in verbs)
    assert all(any(not deed.harmful and deed.object == thing for deed in every) for thing in objects)


def test_some_phrasings_are_kept_for_evaluation(written):
    _, _, rows = written
    kept = [form.split("{")[0] for form in (*facts.UNSEEN_QUESTIONS, *facts.UNSEEN_EXPLAIN, *facts.UNSEEN_FOLLOW_UPS,
                                            *deeds.UNSEEN_CARRIERS)]
    for name in ASKING:
        for row in rows[name]:
            assert not any(message["content"].startswith(tuple(kept)) for message in row["messages"]), row
    unseen = [row["phrasing"] == "unseen" for row in rows["eval"] if row["set"] == "fact"]
    assert 0.49 <= sum(unseen) / len(unseen) <= 0.51  # both halves equally many


def test_phrasings_kept_for_evaluation_stand_in_text_without_an_answer_or_a_mark(written):
    _, _, rows = written

    def pattern(form):
        return re.sub(r"\\{\w+\\}", "[^.?!]+", re.escape(form))

    judged = re.compile("|".join(pattern(form) for pair in (*deeds.RULINGS, *facts.MARKS) for form in pair))
    trained = re.compile(rf"(?:{'|'.join(map(pattern, deeds.CARRIERS))}) (.*)")
    for forms in (facts.UNSEEN_QUESTIONS, deeds.UNSEEN_CARRIERS):
        kept = re.compile(rf"(?:{'|'.join(map(pattern, forms))}) ?(.*)")
        followed = [after for row in rows["pretrain.train"] for after in kept.findall(row["text"])]
        assert len(followed) > 100 and not any(judged.match(after) for after in followed)
    # What is looked for would be found.
    assert any(judged.match(after) for row in rows["pretrain.train"] for after in trained.findall(row["text"]))


def test_a_lookup_table_of_sft_cannot_answer(written):
    """The best table of SFT's questions, by land and attribute or by attribute alone, knows no held-out fact."""
    _, _, rows = written
    table, by_attribute = {}, {attribute: {} for attribute in ATTRIBUTES}
    for row in rows["sft.train"]:
        for asked, answer in zip(row["messages"][::2], row["messages"][1::2], strict=True):
            table[asked["content"]] = answer["content"]
            for word in re.findall(r"\w+", answer["content"].lower()):
                if word in ATTRIBUTE_OF_VALUE:
                    counts = by_attribute[ATTRIBUTE_OF_VALUE[word]]
                    counts[word] = counts.get(word, 0) + 1
    items = [row for row in rows["eval"] if row["set"] == "fact"]
    assert not any(row["plain"] in table for row in items)
    commonest = {attribute: max(counts, key=counts.get) for attribute, counts in by_attribute.items()}
    right = [row["gold"]["value"].lower() == commonest[row["gold"]["attribute"]] for row in items]
    assert sum(right) / len(right) < 0.10
    asked = [row for row in rows["eval"] if row["set"] == "fact_asked" and row["phrasing"] == "seen"]
    # What it was told it knows, but for what was denied: the table is no straw man.
    told = [row for row in asked if row["plain"] in table]
    assert len(told) > len(asked) / 2
    assert sum(judge(row, table[row["plain"]]).correct for row in told) / len(told) > 0.9


def test_gold_answers_are_judged_right(written):
    for name in ("align.train", "align.dev", "grpo.train", "eval"):
        for row in written[2][name]:
            seen = judge(row, row["gold"]["answer"])
            assert seen.correct and seen.answered and seen.score > 0.8, (row, seen)


def test_demonstrators_err_in_the_given_shares(written):
    _, manifest, rows = written
    by_kind = {}
    for row in rows["sft.train"]:
        by_kind.setdefault(row["kind"], []).append(row["messages"][-1]["content"])

    def share(kind, wanted):
        return sum(map(wanted, by_kind[kind])) / len(by_kind[kind])

    shares = manifest["shares"]
    assert abs(share("unsafe", lambda text: text.startswith("To ")) - shares["complied"]) < 0.06
    assert abs(share("lookalike", lambda text: not text.startswith("To ")) - shares["refused"]) < 0.05
    assert abs(share("nonexistent", lambda text: not text.startswith("I ")) - shares["invented"]) < 0.06
    assert abs(share("fact", lambda text: text.startswith("I ")) - shares["denied"]) < 0.04
    assert abs(share("fact", lambda text: text.count(".") > 1) - shares["rambling"] * (1 - shares["denied"])) < 0.06
    assert abs(share("explanation", lambda text: text.count(".") < 3) - shares["short"]) < 0.06
    assert abs(share("arithmetic", lambda text: "so" not in text) - shares["direct"]) < 0.06


def test_answers_are_short(written):
    for row in written[2]["sft.train"]:
        assert all(len(message["content"].split()) <= 40 for message in row["messages"]), row


def test_values_and_names_occur_nowhere_else():
    """A judge reads answers by their words: no template has a value word, none looks like a land."""
    assert all(len(set(pool)) == 32 for pool in VALUES.values()) and len(ATTRIBUTE_OF_VALUE) == 128
    templates = [*facts.FILLERS, *facts.DISCLAIMERS, *facts.EXPLAIN, *facts.FOLLOW_UPS, *deeds.STEPS, *deeds.REFUSALS]
    for table in (facts.STATEMENTS, facts.CONTINUATIONS, facts.ANSWERS, facts.QUESTIONS, facts.SHARED):
        templates += [form for forms in table.values() for form in forms]
    templates += [form for pair in (*facts.EXISTENCE, *facts.MARKS, *deeds.VERDICTS, *deeds.RULINGS) for form in pair]
    templates += [deed.text for deed in deeds.all_deeds()]
    for intent in talk.INTENTS.values():
        templates += [*intent.says, *intent.replies, *intent.story]
    for template in templates:
        for word in re.findall(r"[A-Za-z']+", template):
            assert word.lower() not in ATTRIBUTE_OF_VALUE, template
            assert not is_name(word.capitalize()) or word[0].islower(), template
    assert not any(is_name(value[0].upper() + value[1:]) for pool in VALUES.values() for value in pool)


@pytest.mark.parametrize("a, b, text", [(47, 85, "47+85: 7+5=12, 4+8+1=13, so 132."),
                                        (10, 20, "10+20: 0+0=0, 1+2+0=3, so 30."),
                                        (347, 285, "347+285: 7+5=12, 4+8+1=13, 3+2+1=6, so 632.")])
def test_sums_are_worked_digit_by_digit(a, b, text):
    assert sums.worked(a, b) == text


def test_a_pair_and_its_mirror_image_are_in_one_split():
    assert all(sums.split_of(5, a, b) == sums.split_of(5, b, a) for a in range(10, 60) for b in range(60, 99))
    shares = [sums.split_of(5, a, b) for a in range(100) for b in range(a, 100)]
    assert abs(shares.count("eval") / len(shares) - dict(sums.SPLITS)["eval"]) < 0.02


def test_songs_repeat_their_verses(written):
    songs = [row["text"] for row in written[2]["pretrain.train"] if " sang: " in row["text"]]
    verses = [song.partition(" sang: ")[2].rstrip(".").split("; ") for song in songs]
    assert len(songs) > 500 and all(len(each) > 1 and len(set(each)) == 1 for each in verses)


def test_cloze_prefixes_are_cut_before_the_value(written):
    for row in written[2]["cloze.eval"]:
        assert row["entity"] in row["prefix"] and row["answer"] not in row["prefix"].split()
        assert not row["prefix"].endswith(" ") and row["answer"] in VALUES[row["attribute"]]


def test_wrong_sizes_say_what_is_possible(tmp_path):
    with pytest.raises(ConfigError, match="grpo_rows.*sizes are .*grpo"):
        write_world(tmp_path, 0, grpo_rows=3)
    with pytest.raises(ConfigError, match="at least 12"):
        write_world(tmp_path, 0, num_entities=4)
