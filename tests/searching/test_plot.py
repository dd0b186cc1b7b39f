"""Pictures of fronts: written whole or refused, with everything a reader needs on them."""

import builtins
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from puzzlebench.searching.pareto import Front, FrontPoint
from puzzlebench.searching.plot import check_plot, plot_front

pytest.importorskip("matplotlib")


def front_of(llama, x="throughput", y="score", proven=True):
    points = [
        FrontPoint(
            batch_size=batch_size,
            architecture=llama.parent,
            values={x: worth, y: score},
            x=worth,
            y=score,
            budget=worth,
            proven=proven or place > 0,
            seconds=0.1,
        )
        for place, (batch_size, worth, score) in enumerate([(1, 150.0, 0.0), (16, 2500.0, 1.0), (16, 9000.0, 4.0)])
    ]
    return Front(
        x=x,
        y=y,
        x_better="high" if x.startswith("throughput") else "low",
        y_better="low",
        points=tuple(points),
        skipped=(),
        provenance="h100_sxm, trtllm 1.3; costs: somewhere, 2026-01-02",
        seconds=1.0,
    )


@pytest.fixture
def words():
    """A function for the text on an SVG."""
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none"}):
        yield lambda path: " ".join(part for part in ET.parse(path).getroot().itertext() if part.strip())


@pytest.mark.parametrize(("suffix", "head"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".PNG", b"\x89PNG")])
def test_file_is_written_and_nothing_else(llama, tmp_path, suffix, head):
    path = tmp_path / f"front{suffix}"
    path.write_text("old")
    plot_front(front_of(llama), path, title="a model on a GPU")
    assert path.read_bytes().startswith(head)
    assert path.stat().st_size > 10_000
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_says_what_it_shows(llama, tmp_path, words):
    path = tmp_path / "front.svg"
    parent = {"throughput": 140.0, "score": 0.0, "batch_size": 4}
    plot_front(front_of(llama), path, title="a model on a GPU", parent=parent)
    text = words(path)
    for wanted in (
        "a model on a GPU",
        "throughput [tokens/s] (higher is better)",
        "score (lower is better)",
        "batch size",
        "parent, batch 4",
        "h100_sxm, trtllm 1.3; costs: somewhere, 2026-01-02. 3 points, each proven.",
    ):
        assert wanted in text
    assert "not proven" not in text


@pytest.mark.parametrize(
    ("x", "factor", "label"),
    [
        ("memory", 1e8, "memory per GPU [GiB] (lower is better)"),
        ("memory[chat]", 1e6, "memory per GPU, chat [GiB]"),
        ("params", 1e7, "size [B parameters]"),
        ("latency", 1e-3, "latency [s]"),
        ("ttft", 1e-5, "time to first token [ms]"),
        ("tpot[chat]", 1e-5, "time per output token, chat [ms]"),
    ],
)
def test_units(llama, tmp_path, words, x, factor, label):
    front = front_of(llama, x)
    points = [replace(point, x=point.x * factor) for point in front.points]
    plot_front(replace(front, points=tuple(points)), tmp_path / "front.svg", title="t")
    assert label in words(tmp_path / "front.svg")


def test_parent_of_which_one_aim_is_known(llama, tmp_path, words):
    plot_front(front_of(llama), tmp_path / "x.svg", title="t", parent={"throughput": 140.0})
    assert "140 tokens/s" in words(tmp_path / "x.svg")
    plot_front(front_of(llama, "score", "params"), tmp_path / "y.svg", title="t", parent={"params": 8.03e9})
    assert "8.03 B parameters" in words(tmp_path / "y.svg")
    plot_front(front_of(llama), tmp_path / "none.svg", title="t", parent={})
    assert "parent" not in words(tmp_path / "none.svg")


def test_what_is_not_proven_is_marked(llama, tmp_path, words):
    plot_front(front_of(llama, proven=False), tmp_path / "front.svg", title="t")
    assert "not proven" in words(tmp_path / "front.svg")
    assert "2 of them proven" in words(tmp_path / "front.svg")


@pytest.mark.parametrize("name", ["front.pdf", "front", "front.png.txt"])
def test_other_suffixes_are_refused(llama, tmp_path, name):
    with pytest.raises(ValueError, match=r"a plot's file ends in \.png or \.svg"):
        plot_front(front_of(llama), tmp_path / name, title="t")
    assert not list(tmp_path.iterdir())


def test_missing_folder_and_folder_in_the_way(llama, tmp_path):
    with pytest.raises(ValueError, match="there is no folder"):
        check_plot(tmp_path / "nowhere" / "front.png")
    (tmp_path / "front.png").mkdir()
    with pytest.raises(ValueError, match="cannot write"):
        plot_front(front_of(llama), tmp_path / "front.png", title="t")
    assert [one.name for one in tmp_path.iterdir()] == ["front.png"]


def test_missing_matplotlib_names_the_extra(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"pip install 'puzzlebench\[plots\]'"):
        check_plot(tmp_path / "front.png")


def test_pyplot_is_left_alone(llama, tmp_path):
    import sys

    loaded = "matplotlib.pyplot" in sys.modules
    plot_front(front_of(llama), tmp_path / "front.png", title="t")
    assert ("matplotlib.pyplot" in sys.modules) == loaded
