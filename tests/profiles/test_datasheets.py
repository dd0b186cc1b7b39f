"""Datasheets: the bundled ones, and every way in which a user's file can be wrong."""

import pytest
import yaml

from puzzlebench_profiles.datasheets import bundled_datasheets, find_datasheet, read_datasheet

FACTS = {
    "memory_bytes": 80_000_000_000,
    "memory_bandwidth": 3.0e12,
    "peak_bf16_flops": 9.0e14,
    "sm_count": 132,
    "l2_bytes": 50_000_000,
    "link_bandwidth": 4.0e11,
}


@pytest.fixture
def read(tmp_path):
    def read(**changes):
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in (FACTS | changes).items() if value != "missing"}))
        return read_datasheet(path)

    return read


def test_the_bundled_gpus():
    sheets = bundled_datasheets()
    assert {"a100_sxm", "h100_sxm", "h200_sxm", "l40s", "b200_sxm"} <= sheets.keys()
    for name, sheet in sheets.items():
        assert sheet.name == name
        assert 3e11 < sheet.memory_bandwidth < 2e13
        assert 1e14 < sheet.peak_bf16_flops < 1e16
        assert 100 < sheet.power_watts < 3000
        assert sheet.peak_fp8_flops is None or sheet.peak_fp8_flops == pytest.approx(
            2 * sheet.peak_bf16_flops, rel=0.02
        )  # 733 and 362.05 on the L40S
        assert sheet.source


def test_every_alias_finds_its_gpu_and_no_other():
    names = [(alias, sheet) for sheet in bundled_datasheets().values() for alias in (sheet.name, *sheet.aliases)]
    assert len({alias for alias, _ in names}) == len(names)
    for alias, sheet in names:
        assert find_datasheet(alias) is sheet
        assert find_datasheet(alias.upper().replace("_", "-")) is sheet


def test_a_users_file_needs_six_numbers(read):
    sheet = read()
    assert (sheet.name, sheet.display_name, sheet.peak_fp8_flops, sheet.aliases) == ("mine", "mine", None, ())
    assert sheet.peak_flops("fp8") == sheet.peak_flops("bf16") == 9.0e14
    assert read(peak_fp8_flops=1.8e15).peak_flops("fp8") == 1.8e15


def test_numbers_that_yaml_takes_for_text(tmp_path):
    path = tmp_path / "mine.yaml"
    text = "\n".join(f"{key}: {value:e}".replace("e+", "e") for key, value in FACTS.items())
    assert "3.000000e12" in text
    path.write_text(text)
    assert read_datasheet(path).memory_bandwidth == 3.0e12
    assert read_datasheet(path).memory_bytes == 80e9


def test_a_compute_capability_without_quotes(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(FACTS) + "compute_capability: 9.0\n")
    assert read_datasheet(path).compute_capability == "9.0"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"memory_bandwith": 1.0}, "unknown key 'memory_bandwith'; did you mean 'memory_bandwidth'"),
        ({"zzz": 1.0}, "unknown key 'zzz'; known keys: aliases, "),
        ({"sm_count": "missing"}, "missing sm_count"),
        ({"sm_count": "missing", "l2_bytes": "missing"}, "missing l2_bytes, sm_count"),
        ({"memory_bytes": -1}, "memory_bytes must be a number above 0, not -1"),
        ({"sm_count": 0}, "sm_count must be a number above 0, not 0"),
        ({"sm_count": True}, "sm_count must be a number above 0, not True"),
        ({"memory_bandwidth": float("nan")}, "memory_bandwidth must be a number above 0, not nan"),
        ({"memory_bandwidth": "nan"}, "memory_bandwidth must be a number above 0, not nan"),
        ({"peak_bf16_flops": float("inf")}, "peak_bf16_flops must be a number above 0, not inf"),
        ({"peak_bf16_flops": "fast"}, "peak_bf16_flops must be a number, not 'fast'"),
        ({"memory_bytes": "80 GB"}, "memory_bytes must be a number, not '80 GB'"),
        ({"memory_bytes": None}, "memory_bytes must be a number above 0, not None"),
        ({"peak_fp8_flops": [1]}, "peak_fp8_flops must be a number above 0, not "),
        ({"peak_fp8_flops": -2.0}, "peak_fp8_flops must be a number above 0, not -2.0"),
        ({"power_watts": -5}, "power_watts must be a number at least 0, not -5"),
        ({"aliases": "h100"}, "aliases must be a list, not 'h100'"),
        ({"aliases": [1]}, "aliases must be texts"),
        ({"name": 5}, "name must be text, not 5"),
        ({"compute_capability": 9}, "compute_capability must be text, not 9"),
    ],
)
def test_wrong_values_are_named(read, changes, message):
    with pytest.raises(ValueError, match=message):
        read(**changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "is not valid YAML"),
        ("- a\n- b", "must be a mapping"),
        ("", "must be a mapping"),
        ("\x00", "not valid YAML"),
    ],
)
def test_files_that_are_not_datasheets(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_datasheet(path)
    assert "\n" not in str(caught.value)


def test_a_binary_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xff\xfe\x80PAR1")
    with pytest.raises(ValueError, match="is not valid YAML"):
        find_datasheet(str(path))


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read datasheet .*none.yaml: No such file"):
        find_datasheet(str(tmp_path / "none.yaml"))
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(ValueError, match=r"cannot read datasheet .*folder.yaml: Is a directory"):
        find_datasheet(str(tmp_path / "folder.yaml"))


def test_an_unknown_name_suggests_a_near_one():
    with pytest.raises(ValueError, match="unknown GPU 'h10': did you mean h100"):
        find_datasheet("h10")
    with pytest.raises(ValueError, match="unknown GPU '': `puzzlebench gpus` lists them"):
        find_datasheet("")
