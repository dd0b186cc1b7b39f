"""The tokenizer of a checkpoint in GGUF's words, read from its files without transformers.

tokenizer.json counts before tokenizer.model. Two kinds have a place in llama.cpp: byte-level BPE (its `gpt2`, with a
named pre-tokenizer) and SentencePiece's BPE with bytes (its `llama`, with scores). Anything else is refused with what
it is. Not carried over, and said in the notes: normalisation (NFC), and tokens that take the spaces beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from puzzlebench.exporting.gguf_pretokenizers import find_pre_tokenizer, is_byte_level
from puzzlebench.exporting.gguf_sentencepiece import (
    BYTE,
    CONTROL,
    NORMAL,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    is_byte,
    read_pieces,
    scores_from_merges,
)
from puzzlebench.exporting.gguf_special_tokens import (
    added_around,
    chat_templates,
    load_object,
    special_ids,
    tokenizer_config,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class GGUFTokenizer:
    """What a GGUF file says of a tokenizer.

    Attributes:
        model: llama.cpp's kind; "none" where the checkpoint has no tokenizer.
        pre: llama.cpp's name of how text is cut, with gpt2.
        tokens: one per row of the embeddings.
        types: the same, in GGUF's numbers.
        scores: with llama only.
        merges: "left right", with gpt2 only.
        special: ids by role: bos, eos, eot (another token that ends a turn), unk, pad.
        templates: chat templates by name.
        notes: what llama.cpp will do otherwise than transformers.
    """

    model: Literal["gpt2", "llama", "none"]
    pre: str | None = None
    tokens: tuple[str, ...] = ()
    types: tuple[int, ...] = ()
    scores: tuple[float, ...] | None = None
    merges: tuple[str, ...] | None = None
    special: Mapping[str, int] = field(default_factory=dict)
    add_bos: bool = False
    add_eos: bool = False
    space_prefix: bool | None = None
    templates: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_tokenizer(folder: Path, vocab_size: int) -> GGUFTokenizer:
    """The tokenizer in a checkpoint's folder.

    Args:
        vocab_size: rows of the embeddings; ids without a token are filled up to it.

    Raises:
        ValueError: llama.cpp has no such tokenizer, or it has more tokens than the embeddings have rows.
    """
    try:
        if (folder / "tokenizer.json").is_file():
            return _from_json(folder, vocab_size)
        if (folder / "tokenizer.model").is_file():
            return _from_sentencepiece(folder, vocab_size)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{folder}: its tokenizer cannot be read: {error!r}") from None
    except ValueError as error:
        message = str(error)
        named = message if message.startswith(str(folder)) else f"{folder}: {message}"
        raise ValueError(f"{named}; without its tokenizer files the model can be written without one") from None
    note = f"{folder} has no tokenizer.json and no tokenizer.model: the GGUF file takes and gives token ids only"
    return GGUFTokenizer(model="none", notes=(note,))


def _from_json(folder: Path, vocab_size: int) -> GGUFTokenizer:
    stated = load_object(folder / "tokenizer.json")
    config, model = tokenizer_config(folder), stated["model"]
    if model.get("type", "BPE") != "BPE":
        raise ValueError(f"its tokenizer is {model.get('type')}, and llama.cpp has BPE for decoders")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise ValueError(f"its BPE has {key} {model[key]!r}, which llama.cpp does not know")
    added = stated.get("added_tokens") or []
    vocab: dict[str, int] = model["vocab"]
    merges = [_pair(merge) for merge in model["merges"]]
    add_bos, add_eos, ends = added_around(stated.get("post_processor"))
    notes = _added_notes(added)
    common: dict[str, Any] = {"add_bos": add_bos, "add_eos": add_eos, "templates": chat_templates(folder, config)}
    special = special_ids(folder, config, {**vocab, **{token["content"]: token["id"] for token in added}}) | ends
    if is_byte_level(stated.get("pre_tokenizer")):
        pre = find_pre_tokenizer(stated)
        notes += _normaliser_notes(stated.get("normalizer"))
        if not pre.exact:
            notes += (
                f"llama.cpp's pattern for {pre.name} comes near the tokenizer's: letters outside of ASCII may differ",
            )
        if spaced := next((merge for merge in merges if " " in "".join(merge)), None):
            raise ValueError(f"its merge {spaced!r} has a space in it, which a GGUF file cannot say")
        tokens, types = _table(vocab, added, {}, vocab_size)
        return GGUFTokenizer(
            model="gpt2",
            pre=pre.name,
            tokens=tokens,
            types=types,
            merges=tuple(f"{left} {right}" for left, right in merges),
            special=special,
            notes=notes,
            **common,
        )
    if not model.get("byte_fallback"):
        raise ValueError(
            f"its BPE is neither byte-level nor falls back on bytes (pre_tokenizer {stated.get('pre_tokenizer')!r})"
        )
    prefix = _space_prefix(stated)
    added_names = {token["content"] for token in added}
    scores = scores_from_merges({token: n for token, n in vocab.items() if token not in added_names}, merges)
    kinds = {token: BYTE for token in vocab if is_byte(token)} | {
        token: UNKNOWN for token in (model.get("unk_token"),) if token
    }
    tokens, types = _table(vocab, added, kinds, vocab_size)
    return GGUFTokenizer(
        model="llama",
        tokens=tokens,
        types=types,
        scores=tuple(scores.get(token, 0.0) for token in tokens),
        special=special,
        space_prefix=prefix,
        notes=notes,
        **common,
    )


def _from_sentencepiece(folder: Path, vocab_size: int) -> GGUFTokenizer:
    pieces, config = read_pieces(folder / "tokenizer.model"), tokenizer_config(folder)
    added = [
        {"id": int(number), "content": token["content"], "special": bool(token.get("special"))}
        for number, token in (config.get("added_tokens_decoder") or {}).items()
    ]
    vocab = {token: number for number, token in enumerate(pieces.tokens)}
    kinds = {token: kind for token, kind in zip(pieces.tokens, pieces.types, strict=True) if kind != NORMAL}
    tokens, types = _table(vocab, [token for token in added if token["content"] not in kinds], kinds, vocab_size)
    scores = dict(zip(pieces.tokens, pieces.scores, strict=True))
    names = {**vocab, **{token["content"]: token["id"] for token in added}}
    return GGUFTokenizer(
        model="llama",
        tokens=tokens,
        types=types,
        scores=tuple(scores.get(token, 0.0) for token in tokens),
        special={**pieces.special, **special_ids(folder, config, names)},
        add_bos=config.get("add_bos_token") is not False,  # of Llama's own tokenizer class, as is the next
        add_eos=bool(config.get("add_eos_token")),
        space_prefix=pieces.space_prefix,
        templates=chat_templates(folder, config),
    )


def _table(
    vocab: Mapping[str, int], added: Sequence[Mapping[str, Any]], kinds: Mapping[str, int], rows: int
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Tokens and their types by id; rows of the embeddings that have none get a name that no text gives."""
    by_id = {number: (token, kinds.get(token, NORMAL)) for token, number in vocab.items()}
    for token in added:
        kind = kinds.get(token["content"]) or (CONTROL if token.get("special") else USER_DEFINED)
        by_id[token["id"]] = (token["content"], kind)
    if by_id and (last := max(by_id)) >= rows:
        raise ValueError(f"its token {by_id[last][0]!r} has id {last}, and the model has embeddings for {rows} tokens")
    table = [by_id.get(number, (f"[PAD{number}]", UNUSED)) for number in range(rows)]
    seen: dict[str, int] = {}
    for number, (name, _) in enumerate(table):
        if name in seen or not name:
            raise ValueError(f"its tokens {seen.get(name, number)} and {number} are both {name!r}; llama.cpp wants one")
        seen[name] = number
    return tuple(name for name, _ in table), tuple(kind for _, kind in table)


def _pair(merge: Any) -> tuple[str, str]:
    """Merges are pairs, and were strings with a space before tokenizers 0.20."""
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left, right


def _space_prefix(stated: Mapping[str, Any]) -> bool:
    """Of a BPE without byte level: whether a space is put before the text. Spaces must become SentencePiece's."""
    pre, normaliser = stated.get("pre_tokenizer"), stated.get("normalizer")
    if (
        isinstance(pre, Mapping)
        and pre.get("type") == "Metaspace"
        and normaliser is None
        and not pre.get("split", True)
    ):
        return bool(pre.get("prepend_scheme", "always") != "never")
    steps = [] if normaliser is None else (normaliser.get("normalizers") or [normaliser])
    replaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepends = {"type": "Prepend", "prepend": SPACE}
    if pre is None and steps in ([prepends, replaces], [replaces]):
        return len(steps) == 2
    raise ValueError(f"its BPE has normalizer {normaliser!r} and pre_tokenizer {pre!r}, which are not SentencePiece's")


def _normaliser_notes(normaliser: Any) -> tuple[str, ...]:
    if normaliser is None or normaliser == {"type": "Sequence", "normalizers": []}:
        return ()
    if normaliser == {"type": "NFC"}:
        return ("its tokenizer composes characters first (NFC), which llama.cpp does not: decomposed text may differ",)
    raise ValueError(f"its tokenizer changes text first ({normaliser!r}), which llama.cpp does not with BPE")


def _added_notes(added: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    greedy = [token["content"] for token in added if any(token.get(key) for key in ("lstrip", "rstrip", "single_word"))]
    if not greedy:
        return ()
    return (
        f"{len(greedy)} added tokens, the first {greedy[0]!r}, take or want what is beside them, which is not told",
    )
