"""Files of a report."""

import builtins
import json
import logging

import pytest

from puzzlebench.reporting.data import collect
from puzzlebench.reporting.write import write_report

PNGS = ("front", "architecture", "time", "scores", "speed", "retention", "losses")


def test_writes_page_and_pictures(run_folder, tmp_path):
    images = pytest.importorskip("matplotlib.image")
    out = tmp_path / "new" / "report"
    written = write_report(run_folder, out)
    assert written[0] == out / "report.html"
    assert sorted(written) == sorted(out.iterdir())
    assert {path.stem for path in written[1:]} == set(PNGS)
    for path in written[1:]:
        pixels = images.imread(path)[..., :3]
        assert min(pixels.shape[:2]) > 200
        assert len({tuple(colour) for colour in pixels[::4, ::4].reshape(-1, 3).round(2)}) > 8, path.name


def test_older_pictures_of_what_is_gone_go(copy, tmp_path):
    pytest.importorskip("matplotlib")
    write_report(copy, tmp_path / "out")
    (copy / "speed" / "speed.json").unlink()
    written = write_report(copy, tmp_path / "out")
    assert tmp_path / "out" / "speed.png" not in written
    assert sorted(written) == sorted((tmp_path / "out").iterdir())


def test_picture_of_speed_says_that_costs_are_of_another_setup(data, copy):
    pytest.importorskip("matplotlib")
    from puzzlebench.reporting.pictures.results import draw_speed

    def foot(found):
        return " ".join(draw_speed(found).get_supxlabel().split())

    words = "the cost table is of another device, engine or number format"
    assert words in foot(data)
    stated = json.loads((copy / "speed" / "speed.json").read_text())
    stated["costs"].update(same_device=True, same_precision=True, engine=stated["engine"])
    (copy / "speed" / "speed.json").write_text(json.dumps(stated))
    assert words not in foot(collect(copy))


def test_without_matplotlib_the_page_alone_and_it_says_so(run_folder, tmp_path, monkeypatch, caplog):
    real = builtins.__import__

    def fail(name, *arguments, **options):
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", fail)
    with caplog.at_level(logging.WARNING):
        assert write_report(run_folder, tmp_path) == [tmp_path / "report.html"]
    assert "puzzlebench[plots]" in caplog.text


def test_nothing_is_written_for_a_broken_run(copy, tmp_path):
    (copy / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json is not a JSON file"):
        write_report(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folder_that_cannot_be_made(run_folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write"):
        write_report(run_folder, tmp_path / "file")
