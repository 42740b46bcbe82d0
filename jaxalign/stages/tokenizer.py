"""Trains the tokenizer that all later stages share."""

import json
import pathlib
import time

from ml_collections import ConfigDict

from jaxalign.data.intake import Intake, check_sources, texts_of
from jaxalign.data.tokenizer import check_tokenizer, train_tokenizer


class TrainTokenizer:
    """A SentencePiece model of the configured sources, written to `tokenizer.model`."""

    name = "tokenizer"
    writes = ("tokenizer.model",)

    @staticmethod
    def defaults():
        return ConfigDict(dict(stage="tokenizer", seed=0, vocab_size=1024, model_type="unigram",
                               character_coverage=0.9995, max_chars=20_000_000,
                               data=dict(train=[], on_bad_row="error"))).lock()

    @staticmethod
    def check(config):
        check_sources(list(config.data.train))
        check_tokenizer(config.model_type, config.vocab_size)

    @staticmethod
    def run(config, workdir):
        started = time.monotonic()
        workdir = pathlib.Path(workdir)
        intake = Intake(config.data.on_bad_row, workdir / "bad_rows.jsonl")
        texts = list(texts_of(list(config.data.train), intake))
        intake.close()
        if intake.report.bad:
            print(f"tokenizer: {len(intake.report.bad)} bad rows skipped, listed in {intake.bad_rows_path}")
        tokenizer = train_tokenizer(texts, workdir / "tokenizer.model", vocab_size=config.vocab_size,
                                    model_type=config.model_type, seed=config.seed,
                                    character_coverage=config.character_coverage, max_chars=config.max_chars)
        summary = {"name": workdir.name, "stage": "tokenizer", "seconds": time.monotonic() - started, "steps": 0,
                   "tokens": 0, "before": {}, "after": {"vocab_size": tokenizer.vocab_size},
                   "checkpoint": str(workdir / "tokenizer.model")}
        (workdir / "done.json").write_text(json.dumps(summary, indent=1))
        return summary
