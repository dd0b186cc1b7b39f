"""Tokenizers of checkpoints in GGUF's words, and rebuilt from them: the same tokens come out."""

from __future__ import annotations

import json

import pytest

tokenizers = pytest.importorskip("tokenizers")

from puzzlebench.exporting.gguf_pretokenizers import (  # noqa: E402
    PRE_TOKENIZERS,
    find_pre_tokenizer,
    named_pre_tokenizer,
    pre_tokenizer_json,
)
from puzzlebench.exporting.gguf_sentencepiece import (  # noqa: E402
    Pieces,
    merges_from_scores,
    read_pieces,
    scores_from_merges,
)
from puzzlebench.exporting.gguf_tokenizer import read_tokenizer  # noqa: E402
from puzzlebench.exporting.gguf_tokenizer_import import NOTE_FILE, tokenizer_files  # noqa: E402

from .gguf_tokenizers import TEXTS, byte_level, save, sentencepiece, write_sentencepiece_model  # noqa: E402

GPT2 = PRE_TOKENIZERS[0]


def keys_of(tokenizer):
    """What a file with this tokenizer says."""
    keys = {
        "tokenizer.ggml.model": tokenizer.model,
        "tokenizer.ggml.pre": tokenizer.pre,
        "tokenizer.ggml.tokens": list(tokenizer.tokens),
        "tokenizer.ggml.token_type": list(tokenizer.types),
        "tokenizer.ggml.scores": None if tokenizer.scores is None else list(tokenizer.scores),
        "tokenizer.ggml.merges": None if tokenizer.merges is None else list(tokenizer.merges),
        "tokenizer.ggml.add_bos_token": tokenizer.add_bos,
        "tokenizer.ggml.add_eos_token": tokenizer.add_eos,
        "tokenizer.ggml.add_space_prefix": tokenizer.space_prefix,
    }
    names = {"unk": "unknown", "pad": "padding"}
    keys |= {f"tokenizer.ggml.{names.get(role, role)}_token_id": number for role, number in tokenizer.special.items()}
    for name, template in tokenizer.templates.items():
        keys["tokenizer.chat_template" + ("" if name == "default" else f".{name}")] = template
    return {key: value for key, value in keys.items() if value is not None}


def rebuilt(tokenizer, rows):
    files = tokenizer_files(keys_of(tokenizer), rows)
    return tokenizers.Tokenizer.from_str(files["tokenizer.json"]), files


@pytest.mark.parametrize("pre", PRE_TOKENIZERS, ids=lambda pre: pre.name)
def test_byte_level_tokenizers_come_back_with_the_same_tokens(tmp_path, pre):
    own = byte_level(pre, bos=True)
    save(own, tmp_path, bos="<|end|>", eos="<|end|>", template="{{ messages }}")
    rows = own.get_vocab_size() + 3
    stated = read_tokenizer(tmp_path, rows)
    assert (stated.model, stated.pre, stated.add_bos, stated.add_eos) == ("gpt2", pre.name, True, False)
    assert stated.special == {"bos": 0, "eos": 0}
    assert stated.types == (3, *[1] * (rows - 4), *[5] * 3)
    assert stated.tokens[-1] == f"[PAD{rows - 1}]"
    again, files = rebuilt(stated, rows)
    for text in TEXTS:
        assert again.encode(text).ids == own.encode(text).ids
    assert files["chat_template.jinja"] == "{{ messages }}"
    assert json.loads(files["tokenizer_config.json"])["eos_token"] == "<|end|>"
    assert pre.exact == (not any("letters outside" in note for note in stated.notes))


@pytest.mark.parametrize("prefix", ["prepend", "none"])
def test_sentencepiece_tokenizers_come_back_with_the_same_tokens(tmp_path, prefix):
    own = sentencepiece(prefix=prefix)
    save(own, tmp_path, bos="<s>", eos="</s>", unk_token="<unk>")
    rows = own.get_vocab_size()
    stated = read_tokenizer(tmp_path, rows)
    assert (stated.model, stated.pre, stated.add_bos, stated.space_prefix) == ("llama", None, True, prefix == "prepend")
    assert stated.special == {"bos": 1, "eos": 2, "unk": 0}
    assert stated.types[:4] == (2, 3, 3, 6)
    again, _ = rebuilt(stated, rows)
    for text in TEXTS:
        assert again.encode(text).ids == own.encode(text).ids
        assert again.decode(own.encode(text).ids) == own.decode(own.encode(text).ids)


def test_the_embedded_parents_kind_of_tokenizer_is_gpt_2(tmp_path):
    from puzzlebench.parent.embedded import train_tokenizer
    from puzzlebench.text.corpus import standard_library

    own = train_tokenizer(standard_library("test")[:3], 400)
    own.save_pretrained(tmp_path)
    stated = read_tokenizer(tmp_path, 400)
    assert (stated.model, stated.pre, stated.add_bos, stated.notes) == ("gpt2", "gpt-2", False, ())
    assert stated.special == {"bos": 0, "eos": 0, "pad": 0}
    again, _ = rebuilt(stated, 400)
    for text in TEXTS:
        assert again.encode(text).ids == own.encode(text, add_special_tokens=False)


def test_names_and_patterns_of_pre_tokenizers_are_their_own():
    assert len({pre.name for pre in PRE_TOKENIZERS}) == len(PRE_TOKENIZERS)
    assert len({(pre.cuts, pre.ignore_merges) for pre in PRE_TOKENIZERS}) == len(PRE_TOKENIZERS)
    for pre in PRE_TOKENIZERS:
        stated = {"pre_tokenizer": pre_tokenizer_json(pre), "model": {"ignore_merges": pre.ignore_merges}}
        assert find_pre_tokenizer(stated) is pre
        assert named_pre_tokenizer(pre.name) is pre
    assert named_pre_tokenizer("llama3").name == "llama-bpe"
    assert named_pre_tokenizer("deepseek-llm") is None


LLAMA3 = PRE_TOKENIZERS[1].cuts[0].removeprefix("split ")
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}


def split(pattern, behavior="Isolated", invert=False):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}


def test_the_released_tokenizers_patterns_are_known():
    """Written out as in the tokenizer.json of Llama 3, Qwen 2 and Mistral Nemo."""
    llama3 = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )
    nemo = (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    for pattern, whole, name in (
        (llama3, True, "llama-bpe"),
        (llama3, False, "dbrx"),
        (llama3.replace("{1,3}", ""), False, "qwen2"),
        (nemo, True, "tekken"),
    ):
        for step in (split(pattern), split(pattern, "Removed", invert=True)):
            stated = {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [step, BYTES]}}
            assert find_pre_tokenizer({**stated, "model": {"ignore_merges": whole}}).name == name


@pytest.mark.parametrize(
    ("pre_tokenizer", "message"),
    [
        (split(r"\d+"), r"cuts by split \\d\+, for which llama.cpp has no name known here; known are those of gpt-2"),
        (split(LLAMA3, "MergedWithNext"), r"\(MergedWithNext\), for which"),
        ({"type": "Digits", "individual_digits": False}, "cuts by digits, for"),
        ({"type": "Whitespace"}, "cuts by Whitespace, for"),
        ({"type": "Punctuation", "behavior": "Isolated"}, "cuts by punctuation Isolated, for"),
        ({"type": "ByteLevel", "add_prefix_space": True}, "puts a space before the text"),
    ],
)
def test_an_unknown_pre_tokenizer_is_refused_with_its_pattern(tmp_path, pre_tokenizer, message):
    change(tmp_path, pre_tokenizer={"type": "Sequence", "pretokenizers": [pre_tokenizer, BYTES]})
    with pytest.raises(ValueError, match=message) as caught:
        read_tokenizer(tmp_path, 700)
    assert str(caught.value).startswith(f"{tmp_path}: its pre-tokenizer ")
    assert "\n" not in str(caught.value)


def change(folder, model=None, **changes):
    """A GPT-2 kind of tokenizer.json with something else in it."""
    save(byte_level(GPT2), folder, bos="<|end|>", eos="<|end|>")
    stated = json.loads((folder / "tokenizer.json").read_text())
    stated |= changes
    stated["model"] |= model or {}
    (folder / "tokenizer.json").write_text(json.dumps(stated))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "changes text first .*Lowercase"),
        ({"model": {"type": "Unigram"}}, "its tokenizer is Unigram"),
        ({"model": {"end_of_word_suffix": "</w>"}}, "end_of_word_suffix '</w>'"),
        ({"pre_tokenizer": None}, "neither byte-level nor falls back on bytes"),
        ({"pre_tokenizer": None, "model": {"byte_fallback": True}}, "are not SentencePiece's"),
        ({"post_processor": {"type": "RobertaProcessing"}}, "post-processor is RobertaProcessing"),
        ({"model": {"vocab": 3}}, "its tokenizer cannot be read"),
        ({"model": {"merges": [["a b", "c"]]}}, r"merge \('a b', 'c'\) has a space in it"),
    ],
)
def test_what_llama_cpp_does_not_know_is_refused(tmp_path, changes, message):
    change(tmp_path, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        read_tokenizer(tmp_path, 700)
    assert "\n" not in str(caught.value)


def test_more_tokens_than_embeddings_and_names_twice_are_refused(tmp_path):
    change(tmp_path)
    with pytest.raises(ValueError, match=r"has id \d+, and the model has embeddings for 300 tokens"):
        read_tokenizer(tmp_path, 300)
    change(tmp_path, added_tokens=[{"id": 650, "content": "!", "special": False}])
    with pytest.raises(ValueError, match="tokens 1 and 650 are both '!'"):
        read_tokenizer(tmp_path, 700)


def test_limits_are_noted(tmp_path):
    change(
        tmp_path,
        normalizer={"type": "NFC"},
        added_tokens=[{"id": 0, "content": "<|end|>", "special": True, "rstrip": True}],
    )
    notes = read_tokenizer(tmp_path, 700).notes
    assert len(notes) == 2
    assert "'<|end|>', take or want what is beside them" in notes[0]
    assert "NFC" in notes[1]


def test_added_tokens_and_ids_of_configs(tmp_path):
    added = [
        {"id": 0, "content": "<|end|>", "special": True},
        {"id": 640, "content": "<tool>", "special": False},
        {"id": 641, "content": "<|eot|>", "special": True},
    ]
    change(tmp_path, added_tokens=added)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": [0, 641], "pad_token_id": 641}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [641]}))
    stated = read_tokenizer(tmp_path, 700)
    assert stated.special == {"bos": 0, "eos": 0, "eot": 641, "pad": 641}
    assert (stated.types[640], stated.types[641], stated.tokens[640]) == (4, 3, "<tool>")


def test_named_chat_templates_in_files_and_in_the_config(tmp_path):
    change(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["chat_template"] = [{"name": "default", "template": "D"}, {"name": "rag", "template": "R"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert read_tokenizer(tmp_path, 700).templates == {"default": "D", "rag": "R"}
    (tmp_path / "chat_template.jinja").write_text("file")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tools.jinja").write_text("T")
    stated = read_tokenizer(tmp_path, 700)
    assert stated.templates == {"default": "file", "rag": "R", "tools": "T"}
    _, files = rebuilt(stated, 700)
    again = json.loads(files["tokenizer_config.json"])["chat_template"]
    assert {entry["name"]: entry["template"] for entry in again} == stated.templates


def test_no_tokenizer_is_one_of_ids_only(tmp_path):
    stated = read_tokenizer(tmp_path, 700)
    assert (stated.model, stated.tokens) == ("none", ())
    assert "token ids only" in stated.notes[0]
    files = tokenizer_files({"tokenizer.ggml.model": "none"}, 700)
    assert list(files) == [NOTE_FILE]


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"tokenizer.ggml.model": "bert"}, "its tokenizer is 'bert'"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "deepseek-llm"}, "'deepseek-llm', whose pattern"),
        ({"tokenizer.ggml.model": "gpt2"}, "pre-tokenizer is None"),
        ({"tokenizer.ggml.model": "llama"}, "has no scores"),
    ],
)
def test_a_tokenizer_that_cannot_be_rebuilt_says_why(keys, reason):
    files = tokenizer_files({**keys, "tokenizer.ggml.tokens": ["a", "b"]}, 2)
    assert list(files) == [NOTE_FILE]
    assert reason in files[NOTE_FILE]


def test_tokens_must_be_as_many_as_embeddings():
    with pytest.raises(ValueError, match="2 tokens, and embeddings for 3"):
        tokenizer_files({"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["a", "b"]}, 3)


def test_a_sentencepiece_model_says_the_same_as_its_tokenizer_json(tmp_path):
    own = sentencepiece()
    save(own, tmp_path / "json", bos="<s>", eos="</s>", unk_token="<unk>")
    rows = own.get_vocab_size()
    stated = read_tokenizer(tmp_path / "json", rows)
    (tmp_path / "model").mkdir()
    write_sentencepiece_model(
        tmp_path / "model" / "tokenizer.model", list(zip(stated.tokens, stated.scores, stated.types, strict=True))
    )
    config = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}
    for _ in range(2):  # without a config, and with one
        other = read_tokenizer(tmp_path / "model", rows)
        assert (other.tokens, other.types, other.scores) == (stated.tokens, stated.types, stated.scores)
        assert (other.special, other.add_bos, other.space_prefix) == (stated.special, True, True)
        (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(config))


def test_sentencepiece_models_that_cannot_be_read(tmp_path):
    file = tmp_path / "tokenizer.model"
    write_sentencepiece_model(file, [("a", -1.0, 1)], kind=1)
    with pytest.raises(ValueError, match="it is no BPE model"):
        read_pieces(file)
    write_sentencepiece_model(file, [("a", -1.0, 1)], prefix=False)
    special = {"unk": 0, "bos": 1, "eos": 2}
    assert read_pieces(file) == Pieces(tokens=("a",), scores=(-1.0,), types=(1,), space_prefix=False, special=special)
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(ValueError, match="not a SentencePiece model that can be read"):
        read_pieces(file)
    file.write_bytes(b"")
    with pytest.raises(ValueError, match="has no pieces"):
        read_pieces(file)


def test_scores_and_merges_are_each_others_inverse():
    vocab = {token: number for number, token in enumerate(("a", "b", "ab", "ba", "aba"))}
    merges = [("a", "b"), ("b", "a"), ("a", "ba"), ("ab", "a")]
    scores = scores_from_merges(vocab, merges)
    assert sorted(scores, key=scores.get, reverse=True) == ["ab", "ba", "aba"]
    pieces = Pieces(
        tokens=tuple(vocab), scores=tuple(scores.get(token, 0.0) for token in vocab), types=(1,) * 5, space_prefix=True
    )
    assert merges_from_scores(pieces) == [("a", "b"), ("b", "a"), ("a", "ba"), ("ab", "a")]


@pytest.mark.parametrize(
    ("merges", "message"),
    [
        ([("a", "b"), ("b", "a"), ("ab", "a")], "do not list 'a' with 'ba', which llama.cpp would join to 'aba'"),
        ([("a", "b"), ("a", "ba"), ("b", "a"), ("ab", "a")], "return to 'aba'"),
    ],
)
def test_merges_that_scores_cannot_order_are_refused(merges, message):
    vocab = {token: number for number, token in enumerate(("a", "b", "ab", "ba", "aba"))}
    with pytest.raises(ValueError, match=message):
        scores_from_merges(vocab, merges)
