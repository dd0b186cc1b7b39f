"""Energy counters of CPU packages, against a made powercap tree."""

import math

import pytest

from puzzlebench.measuring.rapl import PackageEnergy

RANGE_UJ = 262_143_328_850


def zone(root, folder, name, energy_uj):
    path = root / folder
    path.mkdir()
    (path / "name").write_text(f"{name}\n")
    (path / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    (path / "energy_uj").write_text(f"{energy_uj}\n")
    return path / "energy_uj"


def test_packages_add_up_and_nothing_is_counted_twice(tmp_path):
    first = zone(tmp_path, "intel-rapl:0", "package-0", 5_000)
    second = zone(tmp_path, "intel-rapl:1", "package-1-die-0", 900_000)
    others = [
        zone(tmp_path, "intel-rapl:0:0", "core", 1),
        zone(tmp_path, "intel-rapl:2", "psys", 1),
        zone(tmp_path, "intel-rapl-mmio:0", "package-0", 1),
        zone(tmp_path, "intel-rapl:0:1", "package-9", 1),
    ]
    energy = PackageEnergy(tmp_path)
    assert energy.read_mj() == 0
    first.write_text("7500\n")
    second.write_text("1000000\n")
    for other in others:
        other.write_text("999999999\n")
    assert energy.read_mj() == pytest.approx(2.5 + 100)


def test_a_counter_that_wraps_goes_on(tmp_path):
    counter = zone(tmp_path, "intel-rapl:0", "package-0", RANGE_UJ - 1_000)
    energy = PackageEnergy(tmp_path)
    counter.write_text("4000")
    assert energy.read_mj() == pytest.approx(5)
    counter.write_text("6000")
    assert energy.read_mj() == pytest.approx(7)
    counter.write_text("5000")
    assert energy.read_mj() == pytest.approx((RANGE_UJ + 6_000) / 1e3)


def test_a_counter_that_disappears_is_nan_and_may_come_back(tmp_path):
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 1_000)
    energy = PackageEnergy(tmp_path)
    counter.unlink()
    assert math.isnan(energy.read_mj())
    counter.write_text("3000")
    assert energy.read_mj() == pytest.approx(2)


def test_no_counters_at_all(tmp_path):
    with pytest.raises(ValueError, match="no RAPL counters"):
        PackageEnergy(tmp_path)
    with pytest.raises(ValueError, match="no RAPL counters"):
        PackageEnergy(tmp_path / "absent")


def test_counters_for_root_only(tmp_path, monkeypatch):
    zone(tmp_path, "intel-rapl:0", "package-0", 1_000)

    def refuse(path, *_, **__):
        raise PermissionError(13, "Permission denied")

    real = type(tmp_path).read_text  # the tests may run as root, who is refused nothing
    monkeypatch.setattr(
        type(tmp_path), "read_text", lambda path, *args: (refuse if path.name == "energy_uj" else real)(path, *args)
    )
    with pytest.raises(ValueError, match=r"root only.*chmod"):
        PackageEnergy(tmp_path)


def test_a_counter_that_is_no_number(tmp_path):
    zone(tmp_path, "intel-rapl:0", "package-0", "broken")
    with pytest.raises(ValueError, match="cannot be read"):
        PackageEnergy(tmp_path)
