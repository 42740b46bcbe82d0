"""Tokenizers as published with a model: `tokenizer.json`, SentencePiece, or GPT-2's two files, and a chat template.

Behind the same interface as `tokenizer.Tokenizer`; what it is made from travels in checkpoints as it was, so that an
export gives the very files back.
"""

import hashlib
import io
import json
import zipfile

from jaxalign.data.chat import TemplateFault
from jaxalign.data.jinja import JinjaTemplate
from jaxalign.data.vocabularies import gpt2_json, open_vocabulary
from jaxalign.errors import ConfigError, DataError

VOCABULARIES = ("tokenizer.json", "tokenizer.model")  # the first that is there is used
FILES = (*VOCABULARIES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
         "vocab.json", "merges.txt", "encoder.json", "vocab.bpe")
NAMED = ("bos_token", "eos_token", "pad_token", "unk_token")
# Written with what every vocabulary has, for models that were published without a template.
PLAIN = ("{% for m in messages %}{{ '<|' ~ m['role'] ~ '|>\\n' ~ m['content'] ~ eos_token ~ '\\n' }}{% endfor %}"
         "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}")


class PublishedTokenizer:
    """The tokenizer of a published model.

    Attributes: those of `Tokenizer` that are the same for all (`vocab_size`, `pad_id`, `unk_id`, `bos_id`, `eos_id`,
    `end_id`, `tail_ids`, `special_ids`, `hash`, `start_ids`, `template`, `least_rows`); `special_texts` (text → id of the special
    tokens).
    """

    def __init__(self, bundle):
        """`bundle`: what `pack_files` made."""
        self._bundle, self.files = bundle, unpack_files(bundle)
        self.hash = hashlib.sha256(bundle).hexdigest()
        config = _json(self.files, "tokenizer_config.json")
        names = _json(self.files, "special_tokens_map.json") | config
        self._names = {name: _content(names.get(name)) for name in NAMED}
        self._vocabulary = open_vocabulary(self.files, _json(self.files, "added_tokens.json"))
        self.vocab_size, self.special_texts = self._vocabulary.size, dict(self._vocabulary.specials)
        for text in self._names.values():  # named as special, so special, whatever the vocabulary says
            if text is not None and (i := self._vocabulary.id_of(text)) is not None:
                self.special_texts[text] = i
        self.special_ids = frozenset(self.special_texts.values())
        self.bos_id, self.eos_id, self.pad_id, self.unk_id = (
            self.special_texts.get(self._names[name]) for name in ("bos_token", "eos_token", "pad_token", "unk_token"))
        if self.eos_id is None:
            raise ConfigError("the tokenizer names no eos_token, at which a text ends; add it to tokenizer_config.json")
        self.pad_id = self.eos_id if self.pad_id is None else self.pad_id
        self.unk_id = -1 if self.unk_id is None or self._vocabulary.complete else self.unk_id
        self.start_ids = self._vocabulary.start_ids(self.bos_id, config)
        self._template = self.end_id = self.tail_ids = None
        self._read_template(config)
        self.least_rows = 1 + max(self._used())

    def _used(self):
        """Ids that may stand in a text: all but special tokens that the template never writes."""
        used = {i for i in self._vocabulary.ids() if i not in self.special_ids} | {
            i for text, i in self.special_texts.items() if text in self._template.source}
        used |= {self.end_id, *self.tail_ids, *self.start_ids, *({self.bos_id, self.eos_id, self.pad_id} - {None})}
        for roles in (("system", "user"), ("user", "assistant", "tool"), ("user", "assistant", "user", "assistant")):
            for asked in (True, False):  # names of special tokens may be put together from those of roles
                try:
                    used |= set(self._template.render([{"role": role, "content": "Hello."} for role in roles], self, asked)[0])
                except TemplateFault:
                    continue
        return used

    def _read_template(self, config):
        source = self.files.get("chat_template.jinja", b"").decode() or config.get("chat_template")
        if isinstance(source, list):  # several, by name
            named = {entry["name"]: entry["template"] for entry in source}
            source = named.get("default") or next(iter(named.values()), None)
        self.has_template = bool(source)
        source = source or ("{{ bos_token }}" if self.start_ids else "") + PLAIN
        tokens = {name: text for name, text in self._names.items() if text is not None}
        self._template = JinjaTemplate(source, tokens)
        talk = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello."}]
        try:
            ids, mask = self._template.render(talk, self)
        except TemplateFault as fault:
            raise ConfigError(f"chat template: it cannot write one question with its answer: {fault}") from None
        last = max(n for n, m in enumerate(mask) if m)
        self.end_id, self.tail_ids = ids[last], ids[last + 1:]

    @property
    def template(self):
        """How conversations are written."""
        return self._template

    @property
    def stop_ids(self):
        """Where sampling stops."""
        return tuple(dict.fromkeys((self.end_id, self.eos_id)))

    @property
    def model_bytes(self):
        """What `open_tokenizer` makes it again from."""
        return self._bundle

    def __eq__(self, other):
        return isinstance(other, PublishedTokenizer) and self.hash == other.hash

    def __hash__(self):
        return hash(self.hash)

    def __reduce__(self):
        return PublishedTokenizer, (self._bundle,)

    def __repr__(self):
        return f"PublishedTokenizer(vocab_size={self.vocab_size}, hash={self.hash[:12]})"

    def encode(self, text):
        """Text → ids, without anything before or after; never a special id, whatever the text spells."""
        return [i for i, *_ in self._vocabulary.encode(text, specials=False)]

    def encode_rendered(self, text, cuts, specials, broken):
        """(id, first character, end) of each token of what a template wrote.

        Args:
          text: in it special tokens are read as such; `broken` stands inside those that only contents spell.
          cuts: characters before which a token must end, as it does where a prompt ends and an answer is drawn.
          specials: pattern of the special tokens' texts.
        """
        if broken in text:
            return self._encode_broken(text, specials, broken)
        tokens = self._vocabulary.encode(text, specials=True)
        across = [cut for cut in sorted(cuts) if any(start < cut < end for _, start, end in tokens)]
        if not across:
            return tokens
        out, ends = [], [0, *across, len(text)]
        for start, end in zip(ends, ends[1:]):
            out += [(i, s + start, e + start) for i, s, e in self._vocabulary.encode(text[start:end], specials=True)]
        return out

    def _encode_broken(self, text, specials, broken):
        out, at = [], 0
        for match in [*specials.finditer(text), None]:
            part = text[at:match.start() if match else len(text)]
            place = [n for n, c in enumerate(part) if c != broken]  # where each character that stays stands
            place.append(len(part))
            for i, start, end in self._vocabulary.encode(part.replace(broken, ""), specials=False):
                out.append((i, at + place[start], at + (place[end - 1] + 1 if end > start else place[start])))
            if match:
                out.append((self.special_texts[match[0]], match.start(), match.end()))
                at = match.end()
        return out

    def decode(self, ids, *, specials="drop"):
        """Ids → text; specials="show" writes the special tokens where they stand, "drop" leaves them out."""
        text, run = [], []
        for i in map(int, ids):
            if i in self.special_ids:
                text.append(self._vocabulary.decode(run))
                run = []
                if specials == "show":
                    text.append(self._vocabulary.piece(i))
            elif i < self.vocab_size:  # an embedding may have more rows than there are tokens
                run.append(i)
        return "".join(text) + self._vocabulary.decode(run)

    def spell(self, ids):
        """The very characters of ids taken out of a text: special tokens shown, the space before a first word kept."""
        return b"".join(self.piece_bytes(i) or self.piece(i).encode() for i in map(int, ids)).decode("utf-8", "replace")

    def piece(self, i):
        """The piece of one id, as the vocabulary writes it."""
        return self._vocabulary.piece(int(i))

    def is_word(self, i):
        """Whether one id stands for a piece of text, and neither for a special or added token nor for nothing."""
        return 0 <= i < self.vocab_size and i not in self.special_ids and self._vocabulary.is_word(i)

    def piece_bytes(self, i):
        """What one id stands for in a text; empty for special tokens."""
        return b"" if int(i) in self.special_ids else self._vocabulary.piece_bytes(int(i))


def pack_files(files):
    """Files (name → bytes) as the bytes of an archive that is the same for the same files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name), files[name])
    return buffer.getvalue()


def unpack_files(bundle):
    """The files (name → bytes) of `pack_files`."""
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def read_folder(folder, config=None):
    """The `PublishedTokenizer` of a published model's folder. Raises DataError where there is none.

    Args:
      config: the model's; its ids are where texts begin and end if the tokenizer's own files name no end, as GPT-2's.
    """
    files = {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}
    if not any(name in files for name in VOCABULARIES):
        files = gpt2_json(files, folder)
    if not any(name in files for name in VOCABULARIES):
        raise DataError(folder, None, "a tokenizer (tokenizer.json, tokenizer.model, or vocab.json with merges.txt)",
                        "none", "copy it beside the weights")
    try:
        return PublishedTokenizer(pack_files(_with_ends(files, config or {})))
    except ConfigError as error:
        raise ConfigError(f"{folder}: {error}") from None
    except (TypeError, ValueError, LookupError, AttributeError, RecursionError) as error:  # values of kinds that none expects
        raise ConfigError(f"{folder}: its tokenizer's files hold something that cannot be used "
                          f"({type(error).__name__}: {str(error)[:200]}); copy or download them again") from None


def _with_ends(files, config):
    names = _json(files, "special_tokens_map.json")
    if (names | _json(files, "tokenizer_config.json")).get("eos_token") or not isinstance(config.get("eos_token_id"), int):
        return files
    vocabulary = open_vocabulary(files, _json(files, "added_tokens.json"))
    ids = {name: config.get(f"{name}_id") for name in ("bos_token", "eos_token")}
    named = {name: vocabulary.piece(i) for name, i in ids.items() if isinstance(i, int) and 0 <= i < vocabulary.size}
    return files | {"special_tokens_map.json": json.dumps(names | named, ensure_ascii=False).encode()}


def _json(files, name):
    try:
        value = json.loads(files.get(name, b"{}"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name}: not JSON ({error})") from None
    return value if isinstance(value, dict) else {}


def _content(token):
    """A special token as configs write it: its text, or an object that holds it."""
    return token.get("content") if isinstance(token, dict) else token
