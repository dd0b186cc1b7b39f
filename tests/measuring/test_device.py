"""Which device is in hand and what is recorded of it, against made /proc and /sys trees and made GPUs."""

import json
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from puzzlebench.measuring import device as device_module
from puzzlebench.measuring.device import (
    available_memory_bytes,
    cpu_device,
    cpu_model,
    fingerprint,
    git_commit,
    gpu_device,
    holds_gpu,
    last_level_cache_bytes,
    local_device,
    match_gpu,
    memory_bytes,
    usable_cores,
)
from puzzlebench_profiles.datasheets import bundled_datasheets

MIB = 1 << 20
CPUINFO = """processor\t: 0
model name\t: Intel(R) Xeon(R) Platinum 8480C  CPU @ 2.00GHz
flags\t\t: fpu sse4_2 avx2 avx512f amx_bf16 rdrand

processor\t: 1
model name\t: Intel(R) Xeon(R) Platinum 8480C  CPU @ 2.00GHz
"""


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A root whose files are given as text by path; the process may use cores 0 to 3."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)

    def write(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


def caches(core, **levels):
    """Cache files of a core: `L3=("32768K", "0-3")`; an instruction cache that is larger than any other goes along."""
    folder = f"sys/devices/system/cpu/cpu{core}/cache"
    files = {
        f"{folder}/index9/{key}": value for key, value in {"level": "4", "size": "9999M", "type": "Instruction"}.items()
    }
    for level, (size, shared) in levels.items():
        values = {"level": level[1:], "size": size, "type": "Unified", "shared_cpu_list": shared}
        files |= {f"{folder}/index{level[1:]}/{key}": value + "\n" for key, value in values.items()}
    return files


@pytest.mark.parametrize(
    ("vendor_name", "datasheet"),
    [
        ("NVIDIA H100 80GB HBM3", "h100_sxm"),
        ("NVIDIA H200", "h200_sxm"),
        ("NVIDIA A100-SXM4-80GB", "a100_sxm"),
        ("A100-SXM-80GB", "a100_sxm"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA B200", "b200_sxm"),
        ("NVIDIA GB200", "gb200"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtx_pro_6000"),
    ],
)
def test_names_of_gpus_with_a_datasheet(vendor_name, datasheet):
    assert match_gpu(vendor_name) is bundled_datasheets()[datasheet]


@pytest.mark.parametrize(
    "vendor_name",
    [
        "NVIDIA H100 PCIe",
        "NVIDIA H100 NVL",
        "NVIDIA H100 80GB HBM2e",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA H100 80GB HBM3 MIG",
        "NVIDIA H200 NVL",
        "NVIDIA A100 80GB PCIe",
        "NVIDIA A100-PCIE-40GB",
        "NVIDIA A100-SXM4-40GB",
        "NVIDIA L40",
        "NVIDIA GB200 NVL4",
        "NVIDIA RTX PRO 6000 Blackwell Workstation Edition",
        "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition",
        "NVIDIA RTX 6000 Ada Generation",
        "Tesla V100-SXM2-32GB",
        "",
    ],
)
def test_names_of_other_gpus(vendor_name):
    assert match_gpu(vendor_name) is None


def test_every_bundled_datasheet_has_a_name_to_match():
    assert device_module._GPU_NAMES.keys() == bundled_datasheets().keys()


def test_which_gpus_a_machine_holds(monkeypatch):
    names = ("NVIDIA GeForce RTX 4090", "NVIDIA H100 PCIe", "NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(device_module, "list_gpu_names", lambda: names)
    assert holds_gpu("h100_sxm") == holds_gpu("h100") == 2
    assert holds_gpu("h100_pcie") == 1
    assert holds_gpu("geforce_rtx_4090") == 0
    assert holds_gpu("h200_sxm") is None
    monkeypatch.setattr(device_module, "list_gpu_names", tuple)
    assert holds_gpu("h100_sxm") is None


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cuda0", "CPU", ""])
def test_names_that_are_no_device(name):
    with pytest.raises(ValueError, match=r"unknown device .*local, cpu, cuda and cuda:N"):
        local_device(name)


def test_devices_need_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in ("local", "cpu", "cuda"):
        with pytest.raises(ValueError, match=r"pip install 'puzzlebench\[models\]'"):
            local_device(name)


def properties(**changes):
    facts = {
        "name": "NVIDIA GeForce RTX 4090",
        "major": 8,
        "minor": 9,
        "multi_processor_count": 128,
        "total_memory": 24 << 30,
        "L2_cache_size": 72 * MIB,
        "clock_rate": 2_520_000,
        "memory_clock_rate": 10_501_000,
        "memory_bus_width": 384,
    }
    return SimpleNamespace(**(facts | changes))


@pytest.fixture
def two_gpus(monkeypatch):
    cards = [properties(), properties(name="NVIDIA H100 80GB HBM3", L2_cache_size=50 * MIB)]
    cuda = SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: 2,
        get_device_properties=cards.__getitem__,
        mem_get_info=lambda index: (1000 + index, 5000),
    )
    version = SimpleNamespace(cuda="12.8", hip=None)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda, version=version))
    monkeypatch.setattr(device_module, "device_facts", lambda index: {"power_limit_w": 450.0})


def test_local_is_the_first_gpu_where_there_is_one(two_gpus):
    first = local_device("local")
    assert (first.kind, first.index, first.name) == ("cuda", 0, "geforce_rtx_4090")
    assert local_device("cuda") == first
    second = local_device("cuda:1")
    assert (second.index, second.name, second.display_name) == (1, "h100_sxm", "NVIDIA H100 80GB HBM3")
    assert second.datasheet is bundled_datasheets()["h100_sxm"]
    assert second.last_level_cache_bytes == 50 * MIB
    assert second.available_bytes() == 1001
    assert local_device("cpu").kind == "cpu"
    with pytest.raises(ValueError, match=r"no device 'cuda:2': torch sees 2 GPU\(s\)$"):
        local_device("cuda:2")


def test_local_is_the_cpu_otherwise(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert local_device("local") == local_device("cpu")
    assert local_device("local").kind == "cpu"
    with pytest.raises(ValueError, match="torch sees 0 GPU"):
        local_device("cuda")


def test_an_estimated_gpu_says_that_it_is_estimated(two_gpus):
    sheet = local_device("cuda:0").datasheet
    assert sheet.memory_bandwidth == pytest.approx(1.008e12, rel=0.01)  # the vendor's figure
    assert sheet.peak_bf16_flops == pytest.approx(128 * 2.52e9 * 1024)
    assert sheet.peak_fp8_flops == 2 * sheet.peak_bf16_flops
    assert (sheet.sm_count, sheet.l2_bytes, sheet.compute_capability) == (128, 72 * MIB, "8.9")
    assert sheet.power_watts == 450
    assert "estimated" in sheet.source
    assert "nothing measured" in sheet.source
    assert gpu_device(0, properties(major=8, minor=0)).datasheet.peak_fp8_flops is None


def test_a_gpu_of_which_little_is_known(monkeypatch):
    monkeypatch.setattr(device_module, "device_facts", lambda index: {})
    bare = SimpleNamespace(
        name="AMD Instinct MI300X", major=9, minor=4, multi_processor_count=304, total_memory=192 << 30
    )
    device = gpu_device(0, bare)
    assert device.name == "amd_instinct_mi300x"
    assert device.last_level_cache_bytes > 0
    assert device.datasheet.power_watts == 0


def test_the_cpu_of_a_made_tree(tree):
    files = {"proc/cpuinfo": CPUINFO}
    for core in range(4):
        files |= caches(core, L1=("48K", str(core)), L2=("2048K", str(core)), L3=("105M", "0-3"))
    device = cpu_device(tree(files))
    assert device.name == "intel_xeon_platinum_8480c_4c"
    assert device.display_name == "Intel(R) Xeon(R) Platinum 8480C CPU @ 2.00GHz, 4 core(s)"
    assert device.last_level_cache_bytes == device.datasheet.l2_bytes == 105 * MIB
    assert (device.kind, device.index, device.datasheet.sm_count) == ("cpu", 0, 4)
    assert device.datasheet.memory_bytes == psutil.virtual_memory().total
    assert device.datasheet.link_bandwidth == device.datasheet.memory_bandwidth
    assert (device.datasheet.power_watts, device.datasheet.compute_capability) == (0, "")
    assert "estimated" in device.datasheet.source


def test_a_cpu_that_says_nothing(tree):
    device = cpu_device(tree({}))
    assert device.name.endswith("_4c")
    assert cpu_model(tree({})) == (platform.machine() or "cpu")
    assert device.last_level_cache_bytes == 32 * MIB
    assert "cache size unknown" in device.datasheet.source


@pytest.mark.parametrize(
    ("vendor_name", "slug"),
    [
        ("AMD EPYC", "amd_epyc"),
        ("AMD EPYC 9654 96-Core Processor", "amd_epyc_9654"),
        ("13th Gen Intel(R) Core(TM) i9-13900K", "13th_gen_intel_core_i9_13900k"),
        ("AMD Ryzen 7 7840U w/ Radeon", "amd_ryzen_7_7840u_w_radeon"),
        ("NVIDIA A100-SXM4-40GB", "a100_sxm4_40gb"),
        ("()", "unknown"),
    ],
)
def test_slugs(vendor_name, slug):
    assert device_module._slug(vendor_name) == slug


def test_caches_that_cores_share_count_once(tree):
    pairs = {}
    for core, shared in enumerate(("0-1", "0-1", "2-3", "2-3")):
        pairs |= caches(core, L2=("512K", str(core)), L3=("32768K", shared))
    assert last_level_cache_bytes(tree(pairs)) == 64 * MIB


def test_caches_of_cores_out_of_reach_do_not_count(tree):
    files = caches(0, L3=("32M", "0-1")) | caches(1, L3=("32M", "0-1")) | caches(7, L3=("32M", "6-7"))
    assert last_level_cache_bytes(tree(files)) == 32 * MIB


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", 4), ("200000 100000", 2), ("150000 100000", 2), ("10000 100000", 1), ("900000 100000", 4)],
)
def test_cores_of_a_control_group(tree, quota, cores):
    root = tree({"proc/self/cgroup": "0::/pod/box\n", "sys/fs/cgroup/pod/box/cpu.max": f"{quota}\n"})
    assert usable_cores(root) == cores


def test_cores_of_an_older_control_group(tree):
    files = {
        "proc/self/cgroup": "4:memory:/box\n3:cpu,cpuacct:/box\n0::/\n",
        "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "-1",
        "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
    }
    assert usable_cores(tree(files)) == 3


def test_the_tightest_control_group_sets_the_memory(tree):
    files = {
        "proc/self/cgroup": "0::/pod/box\n",
        "sys/fs/cgroup/pod/box/memory.max": "max",
        "sys/fs/cgroup/pod/memory.max": str(64 * MIB),
        "sys/fs/cgroup/pod/memory.current": str(50 * MIB),
        "sys/fs/cgroup/pod/memory.stat": f"anon 1\ninactive_file {10 * MIB}\nactive_file 7\n",
    }
    root = tree(files)
    assert memory_bytes(root) == 64 * MIB
    assert available_memory_bytes(root) == 24 * MIB
    root = tree({"sys/fs/cgroup/pod/memory.current": str(99 * MIB)})
    assert available_memory_bytes(root) == 0


def test_memory_of_an_older_control_group(tree):
    files = {
        "proc/self/cgroup": "7:memory:/on/the/host\n",  # not mounted inside the container
        "sys/fs/cgroup/memory/memory.limit_in_bytes": str(32 * MIB),
        "sys/fs/cgroup/memory/memory.usage_in_bytes": str(5 * MIB),
        "sys/fs/cgroup/memory/memory.stat": f"inactive_file 1\ntotal_inactive_file {2 * MIB}\n",
    }
    assert memory_bytes(tree(files)) == 32 * MIB
    assert available_memory_bytes(tree(files)) == 29 * MIB


def test_memory_without_control_groups(tree, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=1000, available=600))
    root = tree({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": str(1 << 62)})
    assert (memory_bytes(root), available_memory_bytes(root)) == (1000, 600)
    assert local_device("cpu").available_bytes() == 600


def test_the_fingerprint_says_what_ran_and_not_where(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "secret-host")
    monkeypatch.setattr(platform, "node", lambda: "secret-host")
    for name in ("USER", "LOGNAME", "HOME", "HOSTNAME"):
        monkeypatch.setenv(name, "secret-user")
    facts = fingerprint(cpu_device())
    text = json.dumps(facts, allow_nan=False)
    assert {"puzzlebench", "git_commit", "date", "python", "platform", "torch", "cuda", "cudnn"} <= facts.keys()
    assert {"triton", "transformers", "numpy", "threads", "cpu"} <= facts.keys()
    assert facts["cpu"].keys() == {"model", "usable_cores", "memory_bytes", "cache_bytes", "flags"}
    assert facts["numpy"] is not None
    assert "gpu" not in facts
    for private in (
        "secret",
        platform.uname().node,
        sys.prefix,
        str(Path(device_module.__file__).parent.parent.parent),
    ):
        assert private not in text


def test_the_fingerprint_of_a_gpu(monkeypatch):
    monkeypatch.setattr(device_module, "device_facts", lambda index: {"name": f"card {index}"})
    facts = fingerprint(gpu_device(1, properties()))
    assert facts["gpu"] == {"name": "card 1"}
    assert facts["device"] == "geforce_rtx_4090"


def test_the_fingerprint_without_torch(monkeypatch):
    device = cpu_device()
    monkeypatch.setitem(sys.modules, "torch", None)
    facts = fingerprint(device)
    assert (facts["torch"], facts["threads"]) == (None, None)


def test_the_commit_of_a_checkout(tmp_path):
    assert git_commit(tmp_path) is None
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    (tmp_path / "file").write_text("one")
    for command in (("init", "-q"), ("add", "file"), (*who, "commit", "-q", "-m", "one"), ("tag", "v9")):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    clean = git_commit(tmp_path)
    assert clean is not None
    full = subprocess.run(["git", "-C", str(tmp_path), "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    assert full.stdout.startswith(clean)
    (tmp_path / "file").write_text("two")
    assert git_commit(tmp_path) == f"{clean}-dirty"
    inside = tmp_path / "site-packages"
    inside.mkdir()
    assert git_commit(inside) is None
