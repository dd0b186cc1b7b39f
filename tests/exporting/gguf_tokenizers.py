"""Tokenizers of the kinds that llama.cpp has, trained on a few lines, and texts on which they could differ."""

from __future__ import annotations

import itertools

from puzzlebench.exporting.gguf_pretokenizers import pre_tokenizer_json
from puzzlebench.exporting.gguf_sentencepiece import SPACE

LINES = (
    "def answer(question):\n    return 42 if question else None\n",
    "The quick brown fox jumps over 1234567 lazy dogs, doesn't it? It'LL never say WE'VE 'd done it.\n",
    "naïve café – 東京で2024年に。 Привет, мир! مرحبا  😀👍🏽\r\n\r\n\ttabs\t and   spaces   \n\n\n",
    "for x in range(10): print(x, end='')  # α+β=γ\n" * 2,
)
TEXTS = (
    *LINES,
    "",
    " ",
    "   leading and trailing   ",
    "a\n\n\nb\r\nc\t\td",
    "12345 1,234.56 ½ ٣٤٥ Ⅷ",
    "I'm you'RE she'Ll THEY'D",
    "ÀÉÎ straße İstanbul ĳ ǅ",
    "日本語と中文 한국어 ไทย",
    "\u00a0\u2003\u200b\u3000x",
    "!!!???...;;; <|end|> </s> <s> <0x0A>",
    "e\u0301 \U0001f468\u200d\U0001f469\u200d\U0001f467",
)


def byte_level(pre, *, special="<|end|>", bos=False, vocabulary=600):
    """A trained tokenizer.json (as an object of tokenizers) that cuts text as `pre` does."""

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _with_pre(pre)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES * 3, trainer)
    return _rewritten(tokenizer, {"ignore_merges": pre.ignore_merges}, _template(special, 0) if bos else None)


def _with_pre(pre):
    import json

    from tokenizers import Tokenizer, models

    stated = json.loads(Tokenizer(models.BPE()).to_str()) | {"pre_tokenizer": pre_tokenizer_json(pre)}
    return Tokenizer.from_str(json.dumps(stated)).pre_tokenizer


def sentencepiece(*, prefix="prepend", vocabulary=520):
    """A Llama-2 kind of tokenizer.json: pieces by how often they come, every way to put one together listed."""
    import json

    from tokenizers import Tokenizer

    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256))]
    text = SPACE + "".join(LINES).replace(" ", SPACE)
    counts = {}
    for length in range(2, 7):
        for start in range(len(text) - length):
            piece = text[start : start + length]
            if "\n" not in piece and SPACE not in piece[1:]:
                counts[piece] = counts.get(piece, 0) + 1
    letters = sorted(set(text) - {"\n", "\r", "\t"})
    known, chosen = set(letters), []
    for piece in sorted(counts, key=lambda piece: (-counts[piece], piece)):
        if len(chosen) + len(letters) + len(tokens) >= vocabulary:
            break
        if any(piece[:place] in known and piece[place:] in known for place in range(1, len(piece))):
            chosen.append(piece)
            known.add(piece)
    vocab = {token: number for number, token in enumerate([*tokens, *chosen, *letters])}
    merges = [
        [piece[:place], piece[place:]]
        for piece in chosen
        for place in range(1, len(piece))
        if piece[:place] in vocab and piece[place:] in vocab
    ]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = [{"type": "Prepend", "prepend": SPACE}] if prefix == "prepend" else []
    stated = {
        "version": "1.0",
        "added_tokens": [_added(token, number) for number, token in enumerate(tokens[:3])],
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, replace]},
        "pre_tokenizer": None,
        "post_processor": _template("<s>", 1),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prepend else []),
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": merges,
        },
    }
    return Tokenizer.from_str(json.dumps(stated))


def _added(token, number):
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": token, "special": True, **flags}


def _template(token, number):
    first = {"SpecialToken": {"id": token, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [first, {"Sequence": {"id": "A", "type_id": 0}}, first, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }


def _rewritten(tokenizer, model, post_processor):
    import json

    from tokenizers import Tokenizer

    stated = json.loads(tokenizer.to_str())
    stated["model"] |= model
    if post_processor is not None:
        stated["post_processor"] = post_processor
    return Tokenizer.from_str(json.dumps(stated))


def save(tokenizer, folder, *, bos=None, eos=None, template=None, **config):
    """tokenizer.json and what transformers writes beside it."""
    import json

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    stated = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": eos, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(stated))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)


def write_sentencepiece_model(file, pieces, *, kind=2, prefix=True):
    """A tokenizer.model, as the sentencepiece package serialises it."""
    import struct

    def field(number, wire, data):
        return _varint(number << 3 | wire) + data

    def nested(number, data):
        return field(number, 2, _varint(len(data)) + data)

    out = b""
    for token, score, type_ in pieces:
        piece = nested(1, token.encode()) + field(2, 5, struct.pack("<f", score))
        out += nested(1, piece + (b"" if type_ == 1 else field(3, 0, _varint(type_))))
    no_padding = field(43, 0, _varint((1 << 64) - 1))  # -1
    out += nested(2, field(3, 0, _varint(kind)) + field(4, 0, _varint(len(pieces))) + no_padding)
    out += nested(3, nested(1, b"identity") + (b"" if prefix else field(3, 0, _varint(0))))
    file.write_bytes(out)


def _varint(value):
    parts = []
    for shift in itertools.count(0, 7):
        rest = value >> shift
        parts.append(rest & 127 | (128 if rest > 127 else 0))
        if rest <= 127:
            return bytes(parts)
    return None
