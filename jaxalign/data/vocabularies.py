"""The two kinds of vocabulary that published tokenizers have: the package `tokenizers`, and SentencePiece."""

import json
import re

from jaxalign.errors import ConfigError, DataError, get_extra

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_NAME = re.compile(r"<[^<>]+>|\[[A-Z_]+\]")  # how tokens that stand for no text are written: <|end|>, [PAD]
_SPACE = "\u2581"
# How GPT-2 writes bytes as printable characters: those that are printable as themselves, the others from 256 on.
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTE_OF = {chr(b): b for b in _PRINTABLE} | {
    chr(256 + n): b for n, b in enumerate(b for b in range(256) if b not in _PRINTABLE)}


def open_vocabulary(files, added):
    """The vocabulary of a tokenizer's files (name → bytes), to one of SentencePiece with the tokens (text → id) that were
    added later."""
    if "tokenizer.json" in files:
        return JsonVocabulary(files["tokenizer.json"])
    return SentencePieceVocabulary(files["tokenizer.model"], added)


class JsonVocabulary:
    """A `tokenizer.json`.

    Attributes: `size`; `specials` (text → id of the tokens it calls special); `complete` (no text is unknown to it).
    """

    def __init__(self, data):
        try:
            import tokenizers
        except ImportError:
            raise ConfigError(f"tokenizer.json needs the package tokenizers; {get_extra('hf')}") from None
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(data.decode())
            spec = json.loads(data)
        except Exception as error:  # the package raises plain Exceptions
            raise ConfigError(f"tokenizer.json: cannot be read ({error})") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.size = max(vocabulary.values()) + 1
        self._ids = vocabulary
        self._added = {token["id"]: token["content"] for token in spec.get("added_tokens") or []}
        self.specials = {token["content"]: token["id"] for token in spec.get("added_tokens") or [] if token["special"]}
        # A unigram has special tokens among its pieces, and where a letter of their names is unknown they are likelier than it.
        self._unknown = spec["model"].get("unk_id")
        self._likely = frozenset(self.specials.values() if spec["model"].get("type") == "Unigram" else ()) - {self._unknown}
        self._byte_level = '"ByteLevel"' in json.dumps([spec.get("pre_tokenizer"), spec.get("decoder")])
        self.complete = self._byte_level or bool(spec["model"].get("byte_fallback"))

    def ids(self):
        """Of all its tokens."""
        return self._ids.values()

    def id_of(self, text):
        return self._ids.get(text)

    def start_ids(self, bos_id, config):
        """What stands before a text: as its own post-processing adds it."""
        self._tokenizer.encode_special_tokens = False
        added = self._tokenizer.encode("a", add_special_tokens=True).ids
        return added[:1] if added and added[0] == bos_id else []

    def encode(self, text, *, specials):
        """(id, first character, end) of each token."""
        self._tokenizer.encode_special_tokens = not specials
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        tokens = [(i, *offsets) for i, offsets in zip(encoding.ids, encoding.offsets)]
        if specials or self._likely.isdisjoint(encoding.ids):
            return tokens
        return [part for token in tokens for part in (self._letters(text, *token[1:]) if token[0] in self._likely else [token])]

    def _letters(self, text, start, end):
        """A stretch of text letter by letter, what is no piece as bytes."""
        for n, letter in enumerate(text[start:end], start):
            pieces = [letter] if letter in self._ids else [f"<0x{b:02X}>" for b in letter.encode()]
            yield from ((self._ids.get(piece, self._unknown), n, n + 1) for piece in pieces)

    def decode(self, ids):
        return self._tokenizer.decode(ids, skip_special_tokens=False) if ids else ""

    def piece(self, i):
        return self._tokenizer.id_to_token(i) or ""

    def is_word(self, i):
        return i not in self._added and bool(self.piece(i)) and not _NAME.fullmatch(self.piece(i))

    def piece_bytes(self, i):
        piece = self.piece(i)
        if i in self._added:
            return piece.encode()
        if self._byte_level:
            return bytes(BYTE_OF[c] for c in piece) if all(c in BYTE_OF for c in piece) else piece.encode()
        return bytes([int(piece[3:5], 16)]) if _BYTE.fullmatch(piece) else piece.replace(_SPACE, " ").encode()


class SentencePieceVocabulary:
    """A `tokenizer.model`; its control symbols are the special tokens, and what was added behind its pieces. Attributes as of
    `JsonVocabulary`."""

    def __init__(self, data, added=None):
        import sentencepiece

        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=data)
        except RuntimeError as error:
            raise ConfigError(f"tokenizer.model: bytes that SentencePiece cannot parse ({error})") from None
        size = self._processor.vocab_size()
        self._added = {i: text for text, i in (added or {}).items() if i >= size}
        self.size = max([size - 1, *self._added]) + 1
        self.specials = {self.piece(i): i for i in range(size) if self._processor.is_control(i)}
        self.specials |= {text: i for i, text in self._added.items()}
        self.complete = any(self._processor.is_byte(i) for i in range(size))
        self._pattern = re.compile("|".join(map(re.escape, self.specials)) or r"(?!)")

    def ids(self):
        """Of all its tokens."""
        return [*range(self._processor.vocab_size()), *self._added]

    def id_of(self, text):
        if text in self.specials:
            return self.specials[text]
        i = self._processor.piece_to_id(text)
        return i if self._processor.id_to_piece(i) == text else None

    def start_ids(self, bos_id, config):
        return [bos_id] if bos_id is not None and config.get("add_bos_token", True) else []

    def encode(self, text, *, specials):
        out, at = [], 0
        for match in [*(self._pattern.finditer(text) if specials else ()), None]:
            part = text[at:match.start() if match else len(text)]
            if part:
                place = _places(part)
                pieces = self._processor.encode(part, out_type="proto").pieces
                out += [(p.id, at + place[p.begin], at + place[p.end]) for p in pieces]
            if match:
                out.append((self.specials[match[0]], match.start(), match.end()))
                at = match.end()
        return out

    def decode(self, ids):
        return self._processor.decode(ids) if ids else ""

    def piece(self, i):
        return self._added[i] if i in self._added else self._processor.id_to_piece(i)

    def is_word(self, i):
        p = self._processor
        return i < p.vocab_size() and not (p.is_control(i) or p.is_unknown(i) or p.is_unused(i) or p.is_byte(i)
                                           or _NAME.fullmatch(self.piece(i)))

    def piece_bytes(self, i):
        piece = self.piece(i)
        return bytes([int(piece[3:5], 16)]) if self._processor.is_byte(i) else piece.replace(_SPACE, " ").encode()


def _places(text):
    """For each byte of a text, and its end, which character it belongs to."""
    return [n for n, c in enumerate(text) for _ in c.encode()] + [len(text)]


def gpt2_json(files, folder):
    """The files with a `tokenizer.json` made of GPT-2's two files, where those are there."""
    for vocabulary, merges in (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")):
        if vocabulary not in files or merges not in files:
            continue
        try:
            ids = json.loads(files[vocabulary])
            lines = [line for line in files[merges].decode().split("\n") if line and not line.startswith("#version")]
        except ValueError as error:
            raise DataError(folder / vocabulary, None, "a vocabulary as JSON", f"bytes that are none ({error})") from error
        made = byte_level_json(ids, [line.split(" ") for line in lines], ["<|endoftext|>"])
        config = files.get("tokenizer_config.json", b'{"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}')
        return files | {"tokenizer.json": made, "tokenizer_config.json": config}
    return files


# How texts are cut before pieces are merged, by the name that GGUF files give it.
GPT2_CUT = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_ENDS = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASES = r"[^\r\n\p{L}\p{N}]?%s*%s+{short}|[^\r\n\p{L}\p{N}]?%s+%s*{short}" % (_UPPER, _LOWER, _UPPER, _LOWER)
_GPT4 = _SHORT + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _ENDS
_PATTERNS = {
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "smaug-bpe", "dbrx"), _GPT4),
    "qwen2": _GPT4.replace("{1,3}", ""), "deepseek-r1-qwen": _GPT4.replace("{1,3}", ""),
    "gpt-4o": _CASES.replace("{short}", _SHORT + "?") + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _ENDS,
    "tekken": _CASES.replace("{short}", "") + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _ENDS,
}  # fmt: skip
# In these a word that is a piece is that piece, whatever merges would lead to, and texts begin with BOS where nobody says.
BEGINS = WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3", "falcon3", "tekken")
CUTS = dict.fromkeys(("gpt-2", "olmo", "mpt"), [GPT2_CUT]) | {"smollm": [{"type": "Digits", "individual_digits": True}, GPT2_CUT]} | {
    name: [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
           GPT2_CUT | {"use_regex": False}] for name, pattern in _PATTERNS.items()}


def byte_level_json(ids, merges, specials, cut="gpt-2", *, whole=(), first=None):
    """The bytes of a `tokenizer.json`: byte pairs merged as in GPT-2.

    Args:
      ids: piece → id.
      merges: list of pairs of pieces, the first merged first.
      specials: pieces that are special tokens.
      cut: of CUTS.
      whole: pieces that are text and never taken apart.
      first: the special token that stands before a text; None is none.
    """
    added = [{"id": ids[text], "content": text, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": text not in whole} for text in (*specials, *whole) if text in ids]
    starts = first if first is None else {
        "type": "TemplateProcessing", "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "single": [{"SpecialToken": {"id": first, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {first: {"id": first, "ids": [ids[first]], "tokens": [first]}}}
    spec = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": CUTS[cut]}, "post_processor": starts,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                  "ignore_merges": cut in WHOLE_WORDS, "vocab": ids,
                  "merges": merges},
    }  # fmt: skip
    return json.dumps(spec, ensure_ascii=False).encode()
