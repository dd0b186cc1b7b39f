"""One run folder and its report, made once; a browser where there is one."""

import contextlib
import io
import shutil

import pytest

from puzzlebench.reporting.data import collect
from puzzlebench.reporting.page import render_page

from .run_folder import make_run


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return make_run(folder, fractions=(1.0, 0.75, 0.5), points=6)


@pytest.fixture(scope="session")
def data(run_folder):
    return collect(run_folder)


@pytest.fixture(scope="session")
def page(data):
    return render_page(data)


@pytest.fixture
def copy(run_folder, tmp_path):
    """The run in a folder of its own, to break."""
    return shutil.copytree(run_folder, tmp_path / "copy")
