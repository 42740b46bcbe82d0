"""Writes a world to JSONL files, with a manifest that says what was written."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import re

from jaxalign.data.world import dialogues, prompts, prose
from jaxalign.data.world.geography import Shares, Sizes, World
from jaxalign.data.world.lexicon import is_name
from jaxalign.errors import ConfigError


def tokenizer_text(world: World, texts: list[str], talks: list[dict]) -> list[dict]:
    """The text a tokenizer should be trained on: pretraining and SFT text with every name replaced by a fresh one.

    Trained on the text itself, a tokenizer gives each known land a piece of its own and spells all other names, and
    the number of pieces tells which lands exist. With fresh names it learns the syllables, and a name that exists
    looks like one that does not.
    """
    rng = world.rng("tokenizer")
    texts = texts + [message["content"] for row in talks for message in row["messages"]]

    def fresh(match: re.Match) -> str:
        return rng.choice(world.unknown["pretrain"]) if is_name(match[0]) else match[0]

    return [{"text": re.sub(r"\b[A-Z][a-z]+\b", fresh, text)} for text in texts]


def write_world(
    directory,
    seed: int = 0,
    *,
    num_entities: int = 170,
    num_unknown: int = 1300,
    digits: int = 2,
    shares: Shares | None = None,
    **sizes,
) -> dict:
    """Writes all files of the world of `seed` under `directory` and returns the manifest.

    Files: pretrain.train, pretrain.dev, tokenizer.train ({"text"}); cloze.eval ({"prefix", "answer", …}); sft.train,
    sft.dev ({"messages"}); align.train, align.dev, grpo.train, eval (prompts with "gold"), all `.jsonl`; manifest.json.

    Args:
      directory: made if missing; files of these names in it are replaced.
      seed: the same seed and sizes give the same bytes.
      num_entities, num_unknown, digits: see `World`.
      shares: how imperfect the demonstrators are.
      **sizes: fields of `Sizes`; a mapping may stand for a tuple of pairs.

    Returns:
      {"seed", "files": {name: {"rows", "bytes", "sha256", "kinds"}}, "lands": {split: count}, …}.

    Raises:
      ConfigError: for a size that `Sizes` does not have, or a world too small to hold out anything.
    """
    names = {each.name for each in dataclasses.fields(Sizes)}
    if unknown := sorted(set(sizes) - names):
        raise ConfigError(f"world size {unknown[0]!r} is unknown; the sizes are {', '.join(sorted(names))}")
    if num_entities < 12:
        raise ConfigError(f"world.num_entities={num_entities}: expected at least 12, so that every split has lands")
    sizes = {key: tuple(value.items()) if hasattr(value, "items") else value for key, value in sizes.items()}
    size, shares = Sizes(**sizes), shares or Shares()
    world = World(seed, num_entities, num_unknown, digits)

    train = prose.documents(world, world.rng("pretrain"), size.mixture, characters=size.pretrain_characters)
    seen = set(train)
    dev = prose.documents(world, world.rng("pretrain dev"), size.mixture, count=size.dev_documents)
    talks = dialogues.conversations(world, world.rng("sft"), shares, size.sft)
    texts = {json.dumps(row["messages"]) for row in talks}
    dev_counts = [(kind, max(1, round(size.sft_dev_share * count))) for kind, count in size.sft]
    talks_dev = dialogues.conversations(world, world.rng("sft dev"), shares, dev_counts)
    align, align_dev = prompts.alignment(world, size.align, size.align_dev)
    files = {
        "pretrain.train": [{"text": text} for text in train],
        "tokenizer.train": tokenizer_text(world, train, talks),
        "pretrain.dev": [{"text": text} for text in dev if text not in seen],
        "cloze.eval": prose.cloze(world, world.rng("cloze")),
        "sft.train": talks,
        "sft.dev": [row for row in talks_dev if json.dumps(row["messages"]) not in texts],
        "align.train": align,
        "align.dev": align_dev,
        "grpo.train": prompts.arithmetic(world, world.rng("grpo"), "rl", size.grpo),
        "eval": prompts.evaluation(world, size.evaluation),
    }
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    manifest = {
        "seed": seed,
        "num_entities": num_entities,
        "digits": digits,
        "shares": dataclasses.asdict(shares),
        "lands": {split: len(world.of(split)) for split in ("sft", "align", "heldout")},
        "deeds": {split: len(each) for split, each in world.deeds.items()},
        "files": {},
    }
    for name, rows in files.items():
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        (directory / f"{name}.jsonl").write_bytes(data)
        kinds: dict[str, int] = {}
        for row in rows:
            kind = row.get("set") or row.get("kind")
            if kind:
                kinds[kind] = kinds.get(kind, 0) + 1
        manifest["files"][f"{name}.jsonl"] = {
            "rows": len(rows), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "kinds": kinds,
        }
    (directory / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest
