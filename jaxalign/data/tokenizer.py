"""SentencePiece tokenizers: trained here or given, with chat tokens that text can never spell."""

import hashlib
import io
import pathlib

import sentencepiece as spm

from jaxalign.data.chat import TEMPLATE
from jaxalign.data.published import PublishedTokenizer, read_folder
from jaxalign.errors import ConfigError, DataError

PAD, UNK, BOS, EOS = "<pad>", "<unk>", "<s>", "</s>"
CHAT_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>")
_SPACE = "\u2581"  # SentencePiece writes a space as this character, so a text that holds it would come back changed
_STAND_INS = [chr(c) for c in range(0xFDD0, 0xFDF0)]  # Unicode noncharacters: no vocabulary holds them
_LONGEST_TRAINING_PIECE = 4000  # bytes-ish; the trainer drops longer sentences without a word


def train_tokenizer(texts, path=None, *, vocab_size=1024, model_type="unigram", seed=0, character_coverage=0.9995,
                    max_chars=20_000_000):
    """Trains a SentencePiece tokenizer (Kudo & Richardson 2018, arXiv:1808.06226) with byte fallback and chat tokens.

    Text comes back unchanged from `decode(encode(text))`: no normalisation, no whitespace removed, unknown characters
    as bytes, every digit a token of its own. Training is deterministic: one thread, and no sampling unless the text is
    longer than `max_chars`, of which then a prefix of every document, in proportion, is used.

    Args:
      texts: iterable of str.
      path: where to write the model, or None.
      vocab_size: pieces in all, with 256 bytes and 9 special tokens; a text too small for it gives a smaller one, so
        read `Tokenizer.vocab_size`.
      model_type: "unigram" or "bpe".
      seed: of SentencePiece's own generator.
      character_coverage: share of the text's characters that get a piece; the others become bytes.
      max_chars: the most text looked at.
    Returns:
      Tokenizer.
    Raises:
      ConfigError: a model type or size that cannot be had; DataError: no text.
    """
    check_tokenizer(model_type, vocab_size)
    texts = [t for t in texts if t.strip()]
    if not texts:
        raise DataError("tokenizer training text", None, "at least one non-empty text", "none", "check the sources")
    total = sum(map(len, texts))
    if total > max_chars:
        texts = [t[:max(1, len(t) * max_chars // total)] for t in texts]
    spm.set_random_generator_seed(seed)
    model = io.BytesIO()
    try:
        spm.SentencePieceTrainer.train(
            sentence_iterator=_training_lines(texts), model_writer=model, vocab_size=vocab_size, model_type=model_type,
            hard_vocab_limit=False, byte_fallback=True, split_digits=True, character_coverage=character_coverage,
            normalization_rule_name="identity", remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
            # The dummy prefix makes the "Paris" that opens an answer the same piece as the " Paris" inside a sentence.
            add_dummy_prefix=True, num_threads=1, max_sentence_length=1 << 20, minloglevel=2,
            pad_id=0, unk_id=1, bos_id=2, eos_id=3, pad_piece=PAD, unk_piece=UNK, bos_piece=BOS, eos_piece=EOS,
            control_symbols=list(CHAT_TOKENS))
    except RuntimeError as error:  # SentencePiece gives its reasons as text only
        raise ConfigError(f"SentencePiece cannot train vocab_size={vocab_size}, model_type={model_type!r} on "
                          f"{total} characters: {error}") from error
    tokenizer = Tokenizer(model.getvalue())
    if path is not None:
        tokenizer.save(path)
    return tokenizer


def _training_lines(texts):
    """Lines short enough for the trainer, cut before a space; a newline itself is always the byte piece <0x0A>."""
    for text in texts:
        for line in text.split("\n"):
            while len(line) > _LONGEST_TRAINING_PIECE:
                cut = line.rfind(" ", 1, _LONGEST_TRAINING_PIECE)
                cut = cut if cut > 0 else _LONGEST_TRAINING_PIECE
                yield line[:cut]
                line = line[cut:]
            if line:
                yield line


class Tokenizer:
    """A SentencePiece model, its special ids, and its hash.

    Attributes: `vocab_size`; `least_rows` (of an embedding; published vocabularies may end with special tokens that no text uses);
    `pad_id`, `unk_id`, `bos_id`, `eos_id`; `chat_ids` (chat token → id), `end_id` (the end-of-turn token); `tail_ids` (what
    templates of another make write behind it); `start_ids` (what stands before a text), `stop_ids` (where sampling stops);
    `template` (how conversations are written); `special_ids` (frozenset of ids that text never yields); `hash` (sha256
    of the model, hex), by which stages recognise each other's tokenizer.
    """

    def __init__(self, model):
        """`model`: the bytes of a SentencePiece model. One without the chat tokens or padding gets them at its end."""
        processor = spm.SentencePieceProcessor(model_proto=model)
        if missing := _missing_specials(processor):
            model = _with_specials(model, missing)
            processor = spm.SentencePieceProcessor(model_proto=model)
        self._processor, self._model = processor, model
        self.hash = hashlib.sha256(model).hexdigest()
        self.vocab_size = processor.vocab_size()
        self.pad_id, self.unk_id = processor.piece_to_id(PAD), processor.unk_id()
        self.bos_id, self.eos_id = processor.piece_to_id(BOS), processor.piece_to_id(EOS)
        self.chat_ids = {piece: processor.piece_to_id(piece) for piece in CHAT_TOKENS}
        self.end_id = self.chat_ids["<|end|>"]
        self.start_ids, self.stop_ids, self.tail_ids = [self.bos_id], (self.end_id, self.eos_id), []
        self.least_rows = self.vocab_size
        self.template = TEMPLATE
        self.special_ids = frozenset(i for i in range(self.vocab_size) if processor.is_control(i)) | {self.pad_id}
        self._space_bytes = [processor.piece_to_id(f"<0x{b:02X}>") for b in _SPACE.encode()]

    @classmethod
    def load(cls, path):
        """Reads a SentencePiece model file, or the `tokenizer.model` of a folder. Raises DataError where there is none
        or it is something else."""
        path = pathlib.Path(path)
        path = path / "tokenizer.model" if path.is_dir() else path
        if not path.is_file():
            raise DataError(path, None, "a SentencePiece model", "no such file",
                            "train one with `jaxalign tokenizer` or name the right file")
        try:
            return cls(path.read_bytes())
        except RuntimeError as error:
            raise DataError(path, None, "a SentencePiece model", f"bytes it cannot parse ({error})") from error

    @property
    def model_bytes(self):
        """The SentencePiece model itself."""
        return self._model

    def save(self, path):
        path = pathlib.Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self._model)

    def __eq__(self, other):
        return isinstance(other, Tokenizer) and self.hash == other.hash

    def __hash__(self):
        return hash(self.hash)

    def __reduce__(self):
        return Tokenizer, (self._model,)

    def __repr__(self):
        return f"Tokenizer(vocab_size={self.vocab_size}, hash={self.hash[:12]})"

    def encode(self, text):
        """Text → ids, without <s> or </s>; never a special id, whatever the text spells."""
        if _SPACE in text:
            return self._encode_with_space_sign(text)
        return self._processor.encode(text)

    def _encode_with_space_sign(self, text):
        stand_in = next(c for c in _STAND_INS if c not in text)
        marker = [self._processor.piece_to_id(f"<0x{b:02X}>") for b in stand_in.encode()]
        ids, out, i = self._processor.encode(text.replace(_SPACE, stand_in)), [], 0
        while i < len(ids):
            if ids[i:i + 3] == marker:
                out += self._space_bytes
                i += 3
            else:
                out.append(ids[i])
                i += 1
        return out

    def decode(self, ids, *, specials="drop"):
        """Ids → text; specials="show" writes the special tokens where they stand, "drop" leaves them out."""
        text, run = [], []
        for i in ids:
            if (i := int(i)) in self.special_ids:
                text.append(self._processor.decode(run))
                run = []
                if specials == "show":
                    text.append(self._processor.id_to_piece(i))
            else:
                run.append(i)
        return "".join(text) + self._processor.decode(run)

    def spell(self, ids):
        """The very characters of ids taken out of a text: special tokens shown, the space before a first word kept."""
        return b"".join(self.piece_bytes(i) or self.piece(i).encode() for i in ids).decode("utf-8", "replace")

    def piece(self, i):
        """The piece of one id, as SentencePiece writes it (a space is ▁)."""
        return self._processor.id_to_piece(int(i))

    def piece_bytes(self, i):
        """What one id stands for in a text; empty for special tokens and for the unknown."""
        if (i := int(i)) in self.special_ids or i == self.unk_id:
            return b""
        piece = self._processor.id_to_piece(i)
        return bytes([int(piece[3:5], 16)]) if self._processor.is_byte(i) else piece.replace(_SPACE, " ").encode()


def open_tokenizer(model):
    """The tokenizer of a checkpoint's bytes: SentencePiece's, or the archive of a published one."""
    return PublishedTokenizer(model) if model.startswith(b"PK") else Tokenizer(model)


def check_tokenizer(model_type, vocab_size):
    """Raises ConfigError for a tokenizer that cannot be trained, whatever the text."""
    if model_type not in ("unigram", "bpe"):
        raise ConfigError(f"model_type={model_type!r}; expected 'unigram' or 'bpe'")
    smallest = 256 + 4 + len(CHAT_TOKENS) + 1
    if vocab_size < smallest:
        raise ConfigError(f"vocab_size={vocab_size} is below the {smallest} that bytes and special tokens need; "
                          f"use 512 or more")


def load_tokenizer(path):
    """The tokenizer at a path: a SentencePiece model or the folder that holds one, or a published model's folder.

    Raises:
      DataError: there is none, or it is something else.
    """
    folder = pathlib.Path(path)
    if folder.is_dir() and any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        return read_folder(folder)
    return Tokenizer.load(path)


def _missing_specials(processor):
    """The special tokens that are not there, or are there as pieces that text can spell."""
    ids = {piece: processor.piece_to_id(piece) for piece in (PAD, BOS, EOS, *CHAT_TOKENS)}
    return [piece for piece, i in ids.items() if not processor.is_control(i)]


def _with_specials(model, pieces):
    """The model with `pieces` as control symbols, new ones at its end, so that a published one can chat and pad."""
    # Imported here: protobuf is only needed for a foreign model.
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    control, present = sentencepiece_model_pb2.ModelProto.SentencePiece.CONTROL, {p.piece: p for p in proto.pieces}
    for piece in pieces:
        if piece in present:
            present[piece].type = control
        else:
            proto.pieces.add(piece=piece, score=0.0, type=control)
    return proto.SerializeToString(deterministic=True)
