"""A SentencePiece tokenizer, trained here or out of a GGUF file, as a `tokenizer.json`: the same ids where transformers reads it.

Of a SentencePiece model alone transformers makes a tokenizer that drops the space before a text's first word.
"""

import json

from sentencepiece import sentencepiece_model_pb2

SPACE = "\u2581"
TYPES = sentencepiece_model_pb2.ModelProto.SentencePiece
NEVER = -1e4  # of pieces that are no text
UNIGRAM, BPE = sentencepiece_model_pb2.TrainerSpec.UNIGRAM, sentencepiece_model_pb2.TrainerSpec.BPE


def sentencepiece_json(model, start, stripping=()):
    """The bytes of a `tokenizer.json`; None for a model that is made otherwise than `data.tokenizer.train_tokenizer`'s and Llama's,
    which would need other rules.

    Each text between special tokens, and pieces that users defined, is cut by itself, a space before it if the model has that, as
    `Tokenizer.encode` cuts it and published models' own `tokenizer.json` do. What differs: the sign ▁ (U+2581), bytes here and a space there, and texts that spell a special token or, of a unigram, a byte's piece, "<0x0A>".

    Args:
      model: bytes of a SentencePiece model.
      start: the special token before every text; None is none.
      stripping: special tokens that take white space behind them along.
    """
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    rules, kind = proto.normalizer_spec, proto.trainer_spec.model_type
    if rules.precompiled_charsmap or rules.remove_extra_whitespaces or kind not in (UNIGRAM, BPE) or not proto.trainer_spec.byte_fallback:
        return None
    if kind == UNIGRAM and any(p.type == TYPES.USER_DEFINED for p in proto.pieces):
        return None
    # The unknown's name has a space, which no text has where pieces are looked for: as all bytes are known it never is needed, but
    # its id has to be somebody's.
    pieces = [("< unk >" if p.type == TYPES.UNKNOWN else _text(p), p.score if p.type == TYPES.NORMAL else NEVER) for p in proto.pieces]
    ids = {piece: i for i, (piece, _) in enumerate(pieces)}
    if len(ids) < len(pieces):  # two of the same text
        return None
    added = [{"id": i, "content": _text(p), "single_word": False, "lstrip": False, "rstrip": p.piece in stripping, "normalized": False,
              "special": p.type == TYPES.CONTROL} for i, p in enumerate(proto.pieces) if p.type in (TYPES.CONTROL, TYPES.USER_DEFINED)]
    unknown = next(i for i, p in enumerate(proto.pieces) if p.type == TYPES.UNKNOWN)
    if kind == UNIGRAM:
        inside = {"type": "Unigram", "unk_id": unknown, "vocab": pieces, "byte_fallback": True}
    else:
        inside = {"type": "BPE", "dropout": None, "unk_token": pieces[unknown][0], "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False, "vocab": ids,
                  "merges": _merges(proto, ids)}
    spec = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [
            *[{"type": "Prepend", "prepend": SPACE}] * rules.add_dummy_prefix,
            {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]},
        "pre_tokenizer": None,
        "post_processor": None if start is None else {
            "type": "TemplateProcessing", "special_tokens": {start: {"id": start, "ids": [ids[start]], "tokens": [start]}},
            "single": [{"SpecialToken": {"id": start, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}]},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            *[{"type": "Strip", "content": " ", "start": 1, "stop": 0}] * rules.add_dummy_prefix]},
        "model": inside,
    }  # fmt: skip
    return json.dumps(spec, ensure_ascii=False).encode()


def _text(piece):
    """As a piece stands in the file: what users defined is looked for in texts as they are."""
    return piece.piece.replace(SPACE, " ") if piece.type == TYPES.USER_DEFINED else piece.piece


def _merges(proto, ids):
    """Pairs of pieces, the first merged first: SentencePiece merges what makes the piece of the highest score."""
    whole = {p.piece: p.score for p in proto.pieces if p.type == TYPES.NORMAL}
    merges = []
    for piece in sorted(whole, key=lambda piece: (-whole[piece], ids[piece])):
        pairs = [(piece[:n], piece[n:]) for n in range(1, len(piece))]
        merges += sorted((pair for pair in pairs if pair[0] in whole and pair[1] in whole), key=lambda pair: [ids[p] for p in pair])
    return merges
