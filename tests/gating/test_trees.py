import sys
from subprocess import CompletedProcess

import pytest

from puzzlebench.gating.trees import (
    build_environment,
    dependencies,
    find_revision,
    lay_suite_over,
    open_repository,
    unpack,
    working_tree,
)

BACKEND = """
import zipfile
def build_wheel(folder, config_settings=None, metadata_directory=None):
    with zipfile.ZipFile(f"{folder}/tiny-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny.py", "WORD = 'built'")
        wheel.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: tiny\\nVersion: 1.0\\n")
        wheel.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("tiny-1.0.dist-info/RECORD", "")
    return "tiny-1.0-py3-none-any.whl"
"""


def test_a_revision_is_unpacked_as_it_was_committed(checkout, tmp_path):
    first = checkout.git("rev-parse", "HEAD")
    checkout.costs(cells={"block/other": 1.0})
    checkout.commit()
    unpack(checkout.root, find_revision(checkout.root, "HEAD~1"), tmp_path / "tree")
    assert find_revision(checkout.root, "HEAD~1").commit == first
    assert "cell_0" in (tmp_path / "tree/puzzlebench/costs.py").read_text()
    assert checkout.git("worktree", "list").count("\n") == 0
    assert checkout.git("status", "--porcelain") == ""


def test_the_working_tree_has_new_and_changed_files_and_none_that_git_ignores(checkout, tmp_path):
    checkout.costs(cells={"block/other": 1.0})
    checkout.write("puzzlebench/new.py", "")
    checkout.write("noise.log", "")
    (checkout.root / "pyproject.toml").unlink()
    revision = working_tree(checkout.root)
    unpack(checkout.root, revision, tmp_path / "tree")
    assert revision.changes == 3
    assert revision.name.startswith(f"{revision.commit[:12]}+")
    assert "other" in (tmp_path / "tree/puzzlebench/costs.py").read_text()
    assert (tmp_path / "tree/puzzlebench/new.py").exists()
    assert not (tmp_path / "tree/noise.log").exists()
    assert not (tmp_path / "tree/pyproject.toml").exists()


def test_a_working_tree_is_named_by_what_is_in_it(checkout):
    assert working_tree(checkout.root).name == checkout.git("rev-parse", "HEAD")[:12]
    checkout.costs(cells={"block/other": 1.0})
    first = working_tree(checkout.root).name
    assert working_tree(checkout.root).name == first
    checkout.costs(cells={"block/other": 2.0})
    assert working_tree(checkout.root).name != first


def test_the_gates_own_folder_is_no_part_of_the_working_tree(checkout, tmp_path):
    checkout.write("work/first/base.json", "{}")
    clean = working_tree(checkout.root, without=checkout.root / "work")
    assert (clean.changes, clean.name) == (0, checkout.git("rev-parse", "HEAD")[:12])
    checkout.write("puzzlebench/new.py", "")
    one = working_tree(checkout.root, without=checkout.root / "work")
    checkout.write("work/first/next.json", "{}")
    assert working_tree(checkout.root, without=checkout.root / "work") == one
    assert one.changes == 1
    unpack(checkout.root, one, tmp_path / "tree", without=checkout.root / "work")
    assert not (tmp_path / "tree/work").exists()
    assert (tmp_path / "tree/puzzlebench/new.py").exists()


def test_no_repository_and_unknown_revisions_are_said_in_a_line(checkout, tmp_path):
    with pytest.raises(ValueError, match="is not in a git repository"):
        open_repository(tmp_path)
    with pytest.raises(ValueError, match=r"no revision is called 'nowhere'.*give a branch, tag or hash"):
        find_revision(checkout.root, "nowhere")
    with pytest.raises(ValueError, match="no revision is called '--all'"):
        find_revision(checkout.root, "--all")
    checkout.git("checkout", "-q", "--orphan", "other")
    checkout.git("rm", "-rfq", ".")
    checkout.write("README", "")
    bare = checkout.commit()
    with pytest.raises(ValueError, match="is no checkout of puzzlebench"):
        open_repository(checkout.root)
    with pytest.raises(ValueError, match=rf"{bare[:12]}.*has no package puzzlebench"):
        find_revision(checkout.root, bare)


def test_a_shallow_clone_says_why_a_revision_is_not_there(checkout, tmp_path):
    first = checkout.git("rev-parse", "HEAD")
    checkout.costs(cells={"block/other": 1.0})
    checkout.commit()
    checkout.git("clone", "-q", "--depth", "1", f"file://{checkout.root}", str(tmp_path / "shallow"))
    with pytest.raises(ValueError, match="this clone is shallow"):
        find_revision(tmp_path / "shallow", first)


def test_both_sides_run_the_new_suite(checkout, tmp_path):
    base, new = find_revision(checkout.root, "HEAD"), tmp_path / "next"
    checkout.write("puzzlebench/benching/session.py", "# another")
    checkout.write("puzzlebench/measuring/rounds.py", "")
    checkout.commit()
    unpack(checkout.root, base, tmp_path / "base")
    unpack(checkout.root, find_revision(checkout.root, "HEAD"), new)
    assert "both run those of NEW" in (lay_suite_over(tmp_path / "base", new) or "")
    assert (tmp_path / "base/puzzlebench/benching/session.py").read_text() == "# another"
    assert (tmp_path / "base/puzzlebench/measuring/rounds.py").exists()
    assert lay_suite_over(tmp_path / "base", new) is None
    (tmp_path / "base/puzzlebench/measuring/rounds.py").write_text("# of the base")
    assert lay_suite_over(tmp_path / "base", new) == "BASE is measured with NEW's rounds (puzzlebench.measuring)"
    assert (tmp_path / "base/puzzlebench/measuring/rounds.py").read_text() == ""


def test_a_base_without_benchmarks_gets_those_of_new_and_a_new_without_is_refused(checkout, tmp_path):
    unpack(checkout.root, find_revision(checkout.root, "HEAD"), tmp_path / "next")
    (tmp_path / "base").mkdir()
    assert "no benchmarks of its own" in (lay_suite_over(tmp_path / "base", tmp_path / "next") or "")
    (tmp_path / "next/puzzlebench/benching/session.py").unlink()
    with pytest.raises(ValueError, match="NEW has no puzzlebench/benching"):
        lay_suite_over(tmp_path / "base", tmp_path / "next")


def test_dependencies_are_read_from_pyproject(checkout, tmp_path):
    assert dependencies(checkout.root)["dependencies"] == ["numpy"]
    assert dependencies(tmp_path) == {}


def test_an_environment_has_what_the_tree_installs_and_is_built_once(tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "backend.py").write_text(BACKEND)
    (tree / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "tiny"\nversion = "1.0"\n'
    )
    python = build_environment(tree, tmp_path / "environment")
    (tree / "backend.py").write_text("raise SystemExit('built twice')")
    assert build_environment(tree, tmp_path / "environment") == python != sys.executable
    assert list((tmp_path / "environment").glob("lib/python*/site-packages/tiny.py"))


def test_an_environment_that_cannot_be_built_says_pips_last_word(tmp_path, monkeypatch):
    said = CompletedProcess([], 1, stdout="", stderr="a lot\nno matching distribution\n")
    monkeypatch.setattr("puzzlebench.gating.trees.subprocess.run", lambda *_, **__: said)
    with pytest.raises(ValueError, match="cannot build an environment for tree: no matching distribution"):
        build_environment(tmp_path / "tree", tmp_path / "environment")
    assert not (tmp_path / "environment/finished").exists()
