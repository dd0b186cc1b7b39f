"""What a parent states of its licence, and what comes of it."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")

from puzzlebench.exporting.licences import (
    Licence,
    _rows,
    name_problem,
    read_front_matter,
    read_licence,
    write_licence_files,
)
from puzzlebench.parent.embedded import FACTS_FILE

NOTICE = (
    "Llama 3.1 is licensed under the Llama 3.1 Community License, Copyright © Meta Platforms, Inc. All Rights Reserved."
)


def card(folder, front: str, body: str = "# A model\n"):
    (folder / "README.md").write_text(f"---\n{front}---\n{body}", encoding="utf-8")


def test_llama(tmp_path):
    card(tmp_path, "license: llama3.1\nlanguage:\n- en\n- de\nbase_model: meta-llama/Llama-3.1-8B\n")
    (tmp_path / "LICENSE").write_text("LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\n")
    (tmp_path / "USE_POLICY.md").write_text("# Llama 3.1 Acceptable Use Policy\n")
    (tmp_path / "config.json").write_text("{}")
    found = read_licence(tmp_path)
    assert (found.id, found.stated_in) == ("llama3.1", "README.md")
    assert found.name == "Llama 3.1 Community License Agreement"
    assert found.display == "Built with Llama"
    assert found.notice == NOTICE
    assert [file.name for file in found.files] == ["LICENSE", "USE_POLICY.md"]
    assert found.languages == ("en", "de")
    assert found.base_models == ("meta-llama/Llama-3.1-8B",)
    assert name_problem(found, "Llama-Puzzle-4B") is None
    assert "'Llama', and 'Puzzle-4B' does not" in name_problem(found, "Puzzle-4B")
    out = tmp_path / "out"
    out.mkdir()
    assert set(write_licence_files(found, out)) == {"LICENSE", "USE_POLICY.md", "NOTICE"}
    assert (out / "NOTICE").read_text(encoding="utf-8") == NOTICE + "\n"
    assert (out / "USE_POLICY.md").read_text().startswith("# Llama 3.1 Acceptable")


def test_a_notice_that_the_parent_has_stays_one(tmp_path):
    card(tmp_path, "license: llama3.1\n")
    (tmp_path / "Notice.txt").write_text(f"{NOTICE.upper()}\nand more\n", encoding="utf-8")
    out = tmp_path / "out"
    out.mkdir()
    assert write_licence_files(read_licence(tmp_path), out) == ("Notice.txt",)
    assert "and more" in (out / "Notice.txt").read_text(encoding="utf-8")
    (tmp_path / "Notice.txt").write_text("of somebody else\n")
    write_licence_files(read_licence(tmp_path), out)
    assert (out / "Notice.txt").read_text(encoding="utf-8") == f"of somebody else\n\n{NOTICE}\n"


@pytest.mark.parametrize(
    ("text", "licence", "license_name"),
    [
        (
            "                                 Apache License\n                           Version 2.0, January 2004\n",
            "apache-2.0",
            None,
        ),
        ("**LLAMA 3.3 COMMUNITY LICENSE AGREEMENT**\n\n Llama 3.3 Version", "llama3.3", None),
        ("META LLAMA 3 COMMUNITY LICENSE AGREEMENT\n", "llama3", None),
        ("MIT License\n\nCopyright (c) Somebody\n", "mit", None),
        ("# Gemma Terms of Use\n", "gemma", None),
        ("Qwen RESEARCH LICENSE AGREEMENT\n", "other", "qwen-research"),
        ("Qwen LICENSE AGREEMENT\n", "other", "qwen"),
        ("NVIDIA Open Model License Agreement\nLast Modified", "other", "nvidia-open-model-license"),
    ],
)
def test_a_licence_file_alone(tmp_path, text, licence, license_name):
    (tmp_path / "LICENSE").write_text(text)
    found = read_licence(tmp_path)
    assert (found.id, found.license_name, found.stated_in) == (licence, license_name, "LICENSE")
    assert found.duties
    assert found.read_in is not None


def test_other_by_name_and_by_the_file_beside_it(tmp_path):
    card(
        tmp_path,
        "license: other\nlicense_name: nvidia-open-model-license\nlicense_link: https://example.org/its-text\n",
    )
    found = read_licence(tmp_path)
    assert found.name == "NVIDIA Open Model License Agreement"
    assert found.link == "https://example.org/its-text"
    assert found.notice == "Licensed by NVIDIA Corporation under the NVIDIA Open Model License"
    card(tmp_path, "license: other\nlicense_link: LICENSE\n")
    (tmp_path / "LICENSE").write_text("Qwen LICENSE AGREEMENT\n")
    found = read_licence(tmp_path)
    assert (found.id, found.license_name, found.display) == ("other", "qwen", "Built with Qwen")


def test_nothing_is_made_up(tmp_path):
    (tmp_path / "LICENSE").write_text("All rights reserved, ask before use.\n")
    found = read_licence(tmp_path)
    assert (found.id, found.name, found.duties, found.notice) == (None, None, (), None)
    assert [file.name for file in found.files] == ["LICENSE"]
    assert read_licence(None) == Licence()
    card(tmp_path, "license: cc-by-nc-4.0\n")
    found = read_licence(tmp_path)
    assert (found.id, found.name, found.duties, found.read_in) == ("cc-by-nc-4.0", "cc-by-nc-4.0", (), None)


def test_what_is_given_by_hand(tmp_path):
    card(tmp_path, "license: apache-2.0\n")
    found = read_licence(tmp_path, given="mit")
    assert (found.id, found.name, found.stated_in) == ("mit", "MIT License", "who exported it")
    found = read_licence(tmp_path, given="qwen")  # the Hub knows it as other, with a name
    assert (found.id, found.license_name, found.display) == ("other", "qwen", "Built with Qwen")


def test_the_list_of_duties():
    rows = _rows()
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        assert row.keys() - {"name_begins_with", "display", "notice"} == {
            "id",
            "name",
            "titles",
            "link",
            "duties",
            "read_in",
        }
        assert all(title == " ".join(title.lower().split()) for title in row["titles"])
        assert all(duty.endswith(".") for duty in row["duties"])


def test_the_embedded_parent(tmp_path):
    (tmp_path / FACTS_FILE).write_text("{}")
    for found in (read_licence(tmp_path), read_licence(None, parent="embedded")):
        assert found.embedded
        assert found.id is None


@pytest.mark.parametrize(
    ("text", "message"), [("---\na: [\n---\n", "front matter is not YAML"), ("---\n- a\n---\n", "must be a mapping")]
)
def test_front_matter_that_cannot_be_read(tmp_path, text, message):
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_licence(tmp_path)
    assert "\n" not in str(caught.value)


def test_cards_without_front_matter(tmp_path):
    (tmp_path / "README.md").write_text("# A model\n---\nlicense: mit\n---\n")
    assert read_front_matter(tmp_path / "README.md") == {}
    (tmp_path / "README.md").write_text("---\r\nlicense: mit\r\n---\r\n")
    assert read_front_matter(tmp_path / "README.md") == {"license": "mit"}
