"""What a user installs: the wheel as pip builds it, by way of the sdist, unpacked away from the checkout.

Builds with the hatchling of this environment, so it needs no network. It knows nothing of what the modules compute.
"""

import configparser
import os
import subprocess
import sys
import tarfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "puzzlebench": ROOT,
    "puzzlebench_kernels": ROOT / "kernels",
    "puzzlebench_profiles": ROOT / "profiles",
    "puzzlebench_search": ROOT / "search",
}
DATA = (
    "puzzlebench/measuring/stack/*.py.in",
    "puzzlebench/model/data/*.json",
    "puzzlebench/profiling/data/*.json",
    "puzzlebench/distillation/configs/*.yaml",
    "puzzlebench/exporting/*.yaml",
    "puzzlebench/gating/data/*.json",
    "puzzlebench/gating/data/*.yaml",
    "puzzlebench/exporting/templates/*.py.in",
    "puzzlebench/reporting/*.css",
    "puzzlebench/reporting/*.js",
    "puzzlebench_profiles/gpus/*.yaml",
    "puzzlebench_profiles/kernels/manifest.json",
    "puzzlebench_profiles/measured/*/*.parquet",
    "puzzlebench_profiles/kernels/*/*/*.parquet",
)
LICENCES = ("LICENSE", "profiles/puzzlebench_profiles/kernels/LICENSE-aiconfigurator-core")
BYTE_CODE = {".pyc", ".pyo"}

# Run inside the unpacked wheel: one resource per package and data folder, and proof of where it came from.
USE_WHEEL = """
import json, sys
from pathlib import Path
wheel = Path(sys.argv[1])
sys.path.insert(0, str(wheel))  # ahead of the editable install
import puzzlebench, puzzlebench_kernels, puzzlebench_search
from puzzlebench.model.catalog import load_model
from puzzlebench_profiles.datasheets import bundled_datasheets
from puzzlebench_profiles.kernel_tables import KERNEL_DIR, list_kernel_tables, read_kernel_table
load_model("llama-3.1-70b")
assert bundled_datasheets()
table = list_kernel_tables()[0]
assert len(read_kernel_table(table, "gemm"))
files = [puzzlebench.__file__, puzzlebench_kernels.__file__, puzzlebench_search.__file__, str(KERNEL_DIR)]
assert all(Path(file).is_relative_to(wheel) for file in files), files
assert "torch" not in sys.modules
"""


def _hatchling(target: str, source: Path, out: Path) -> Path:
    # Reproducible builds stamp files with this date; a plain checkout has none to offer.
    environment = os.environ | {"SOURCE_DATE_EPOCH": "1735689600"}
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(out)]
    result = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    [built] = out.glob("*.tar.gz" if target == "sdist" else "*.whl")
    return built


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(_hatchling("sdist", ROOT, folder / "built")) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # came with Python 3.11.4
        archive.extractall(folder / "unpacked")
    [root] = (folder / "unpacked").iterdir()
    return root


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel built from the sdist, unpacked: for pure Python this is what an installation looks like."""
    folder = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(_hatchling("wheel", sdist, folder / "built")) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def _files(folder: Path, relative_to: Path) -> set[str]:
    return {
        path.relative_to(relative_to).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in BYTE_CODE
    }


def _dist_info(wheel: Path) -> Path:
    [folder] = wheel.glob("*.dist-info")
    return folder


def test_outer_folders_are_no_packages() -> None:
    # A package named `kernels` here would shadow the one transformers imports.
    for folder in ("kernels", "profiles", "search"):
        assert not (ROOT / folder / "__init__.py").exists()


def test_wheel_has_our_packages_at_top_level_and_nothing_else(wheel: Path) -> None:
    assert {path.name for path in wheel.iterdir()} == {*PACKAGES, _dist_info(wheel).name}


@pytest.mark.parametrize("package", PACKAGES)
def test_wheel_has_every_file_of_a_package(package: str, wheel: Path) -> None:
    outer = PACKAGES[package]
    assert _files(wheel / package, wheel) == _files(outer / package, outer)


@pytest.mark.parametrize("pattern", DATA)
def test_wheel_has_data(pattern: str, wheel: Path) -> None:
    assert list(wheel.glob(pattern))


def test_wheel_has_every_licence(wheel: Path) -> None:
    metadata = HeaderParser().parsestr((_dist_info(wheel) / "METADATA").read_text())
    assert metadata["License-Expression"] == "Apache-2.0"
    assert set(LICENCES) <= set(metadata.get_all("License-File", []))
    for licence in LICENCES:
        assert (_dist_info(wheel) / "licenses" / licence).read_bytes() == (ROOT / licence).read_bytes()


def test_command_is_declared(wheel: Path) -> None:
    entry_points = configparser.ConfigParser()
    entry_points.read(_dist_info(wheel) / "entry_points.txt")
    assert dict(entry_points["console_scripts"]) == {"puzzlebench": "puzzlebench.cli:main"}
    assert dict(entry_points["vllm.general_plugins"]) == {"puzzlebench": "puzzlebench.vllm_plugin:register"}


def test_core_dependencies_leave_torch_out(wheel: Path) -> None:
    metadata = HeaderParser().parsestr((_dist_info(wheel) / "METADATA").read_text())
    core = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert core
    assert not [line for line in core if line.startswith(("torch", "transformers"))]


def test_unpacked_wheel_works_away_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", USE_WHEEL, str(wheel)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_sdist_has_what_the_checks_need(sdist: Path) -> None:
    for name in ("pyproject.toml", "README.md", "LICENSE", "Makefile", "tests/test_packaging.py"):
        assert (sdist / name).is_file(), name
