"""NVML readings, the order of GPUs and locked clocks, against a made pynvml."""

import json
import math
import os
import sys
from types import SimpleNamespace

import pytest

from puzzlebench.measuring import nvml
from puzzlebench.measuring.nvml import Gpu, NvmlUnavailableError, device_facts, list_gpu_names, locked_clocks

UUIDS = ("GPU-aaaa1111-0", "GPU-aaaa2222-1", "GPU-bbbb3333-2")
MIG_UUID = "MIG-cccc4444"
NOT_SUPPORTED, NO_PERMISSION, FUNCTION_NOT_FOUND = "Not Supported", "Insufficient Permissions", "Function Not Found"


class NVMLError(Exception):
    pass


class FakeNvml:
    """Three H100s; `broken` maps a function to the text of the error it raises, `absent` are not in the module."""

    NVMLError = NVMLError
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self):
        self.broken = {}
        self.absent = set()
        self.mask = 0
        self.mig = False
        self.users = 0
        self.locks = []
        self.processes = [
            SimpleNamespace(pid=os.getpid(), usedGpuMemory=5 << 30),
            SimpleNamespace(pid=-1, usedGpuMemory=1),
        ]

    def __getattribute__(self, name):
        if name.startswith("nvml"):
            if name in self.absent:
                raise AttributeError(name)
            if name in self.broken:
                return self._raiser(self.broken[name])
        return super().__getattribute__(name)

    @staticmethod
    def _raiser(text):
        def fail(*_):
            raise NVMLError(text)

        return fail

    def nvmlInit(self):  # noqa: N802
        self.users += 1

    def nvmlShutdown(self):  # noqa: N802
        self.users -= 1


def _answers(fake):
    """NVML's functions: one table rather than thirty methods."""

    def by_uuid(uuid):
        if uuid == MIG_UUID:
            return "mig"
        if uuid not in UUIDS:
            raise NVMLError("Not Found")
        return UUIDS.index(uuid)

    return {
        "nvmlDeviceGetCount": lambda: 3,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetHandleByUUID": by_uuid,
        "nvmlDeviceGetHandleByPciBusId": {"00000000:1b:00.0": 0, "00000000:3c:00.0": 1}.__getitem__,
        "nvmlDeviceGetUUID": lambda handle: UUIDS[handle],
        "nvmlDeviceGetName": lambda handle: b"NVIDIA H100 80GB HBM3" if handle == 0 else f"NVIDIA card {handle}",
        "nvmlDeviceIsMigDeviceHandle": lambda handle: handle == "mig",
        "nvmlDeviceGetDeviceHandleFromMigDeviceHandle": lambda handle: 2,
        "nvmlDeviceGetMigMode": lambda handle: [int(fake.mig), 1],
        "nvmlDeviceGetClockInfo": lambda handle, kind: {1: 1755, 2: 2619}[kind] + handle,
        "nvmlDeviceGetMaxClockInfo": lambda handle, kind: {1: 1980, 2: 2619}[kind],
        "nvmlDeviceGetTemperature": lambda handle, sensor: 41,
        "nvmlDeviceGetPowerUsage": lambda handle: 312_500,
        "nvmlDeviceGetTotalEnergyConsumption": lambda handle: 987_654_321,
        "nvmlDeviceGetCurrentClocksEventReasons": lambda handle: fake.mask,
        "nvmlDeviceGetCurrentClocksThrottleReasons": lambda handle: fake.mask,
        "nvmlDeviceGetComputeRunningProcesses": lambda handle: fake.processes,
        "nvmlSystemGetDriverVersion": lambda: "570.124.06",
        "nvmlSystemGetCudaDriverVersion": lambda: 12080,
        "nvmlDeviceGetEnforcedPowerLimit": lambda handle: 650_000,
        "nvmlDeviceGetPowerManagementDefaultLimit": lambda handle: 700_000,
        "nvmlDeviceGetPersistenceMode": lambda handle: 1,
        "nvmlDeviceGetEccMode": lambda handle: [1, 0],
        "nvmlDeviceGetVbiosVersion": lambda handle: "96.00.74.00.01",
        "nvmlDeviceGetSerial": lambda handle: "1650000000001",
        "nvmlDeviceSetGpuLockedClocks": lambda handle, low, high: fake.locks.append((handle, low, high)),
        "nvmlDeviceResetGpuLockedClocks": lambda handle: fake.locks.append((handle, "reset")),
    }


@pytest.fixture
def fake(monkeypatch):
    fake = FakeNvml()
    fake.__dict__.update(_answers(fake))
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setitem(sys.modules, "torch", None)  # a real GPU under the tests must not answer
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    yield fake
    assert fake.users == 0, "NVML was started and not let go of"


@pytest.fixture
def gpu(fake):
    gpu = Gpu(0)
    yield gpu
    gpu.close()


def test_readings_come_in_their_units(gpu):
    assert (gpu.name, gpu.sm_clock_mhz(), gpu.memory_clock_mhz()) == ("NVIDIA H100 80GB HBM3", 1755, 2619)
    assert (gpu.temperature_c(), gpu.power_w(), gpu.energy_mj()) == (41, 312.5, 987_654_321)
    assert gpu.process_memory_bytes() == 5 << 30
    assert gpu.missing == {}


@pytest.mark.parametrize(
    ("function", "value", "what"),
    [
        ("nvmlDeviceGetTotalEnergyConsumption", Gpu.energy_mj, "energy counter"),
        ("nvmlDeviceGetPowerUsage", Gpu.power_w, "power"),
        ("nvmlDeviceGetTemperature", Gpu.temperature_c, "temperature"),
        ("nvmlDeviceGetClockInfo", Gpu.sm_clock_mhz, "SM clock"),
        ("nvmlDeviceGetClockInfo", Gpu.memory_clock_mhz, "memory clock"),
    ],
)
def test_a_value_the_card_lacks_is_nan_and_is_named(fake, gpu, function, value, what):
    fake.broken[function] = NOT_SUPPORTED
    assert math.isnan(value(gpu))
    assert math.isnan(value(gpu))
    assert gpu.missing == {what: "not supported"}


def test_only_reasons_that_hold_clocks_down_are_throttling(fake, gpu):
    fake.mask = 0x1 | 0x2 | 0x100 | 0x200 | 0x400
    assert gpu.throttle_reasons() == ()
    fake.mask |= 0x4 | 0x40
    assert gpu.throttle_reasons() == ("sw_power_cap", "hw_thermal_slowdown")
    fake.mask = 0x8 | 0x10 | 0x20 | 0x80
    assert gpu.throttle_reasons() == ("hw_slowdown", "sync_boost", "sw_thermal_slowdown", "hw_power_brake")


@pytest.mark.parametrize("how", ["older package", "older driver"])
def test_throttling_under_its_older_name(fake, gpu, how):
    fake.mask = 0x4
    name = "nvmlDeviceGetCurrentClocksEventReasons"
    if how == "older package":
        fake.absent.add(name)
    else:
        fake.broken[name] = FUNCTION_NOT_FOUND
    assert gpu.throttle_reasons() == ("sw_power_cap",)
    assert gpu.missing == {}
    fake.broken["nvmlDeviceGetCurrentClocksThrottleReasons"] = NOT_SUPPORTED
    assert gpu.throttle_reasons() == ()
    assert gpu.missing == {"throttle reasons": "not supported"}


def test_memory_of_this_process_only(fake, gpu):
    fake.processes = [SimpleNamespace(pid=-1, usedGpuMemory=7)]
    assert gpu.process_memory_bytes() is None
    fake.processes = [SimpleNamespace(pid=os.getpid(), usedGpuMemory=None)]
    assert gpu.process_memory_bytes() is None
    fake.processes = [SimpleNamespace(pid=os.getpid(), usedGpuMemory=value) for value in (3, 4)]
    assert gpu.process_memory_bytes() == 7


@pytest.mark.parametrize(
    ("visible", "cards"),
    [
        (None, (0, 1, 2)),
        ("2,0", (2, 0)),
        ("1", (1,)),
        (" 1 , 2", (1, 2)),
        ("0,7,1", (0,)),  # what follows a wrong entry is hidden
        ("0,-1,1", (0,)),
        ("", ()),
        ("-1", ()),
        ("GPU-bbbb", (2,)),
        ("GPU-aaaa2,0", (1, 0)),
        ("GPU-aaaa", ()),  # two cards begin so
        ("NoDevFiles", ()),
    ],
)
def test_cuda_visible_devices(fake, monkeypatch, visible, cards):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    names = ("NVIDIA H100 80GB HBM3", "NVIDIA card 1", "NVIDIA card 2")
    assert list_gpu_names() == tuple(names[card] for card in cards)
    for index, card in enumerate(cards):
        gpu = Gpu(index)
        assert gpu.memory_clock_mhz() == 2619 + card
        gpu.close()
    with pytest.raises(NvmlUnavailableError, match=f"sees {len(cards)} GPU"):
        Gpu(len(cards))


@pytest.mark.parametrize(
    ("properties", "card"),
    [
        ({"uuid": "aaaa2222-1"}, 1),
        ({"uuid": "GPU-bbbb3333-2"}, 2),
        ({"pci_bus_id": 0x3C, "pci_device_id": 0, "pci_domain_id": 0}, 1),
        ({"uuid": "unknown", "pci_bus_id": 0x1B, "pci_device_id": 0}, 0),
        ({}, 0),  # says nothing: PCI order
    ],
)
def test_torch_says_which_card_it_means(fake, monkeypatch, properties, card):
    cuda = SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: 1,
        get_device_properties=lambda index: SimpleNamespace(**properties),
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    gpu = Gpu(0)
    assert gpu.memory_clock_mhz() == 2619 + card
    gpu.close()


def test_a_mig_slice_has_the_clocks_of_its_card_but_no_power(fake, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", MIG_UUID)
    assert list_gpu_names() == ("NVIDIA card mig MIG",)
    gpu = Gpu(0)
    assert gpu.memory_clock_mhz() == 2619 + 2
    assert math.isnan(gpu.power_w())
    assert math.isnan(gpu.energy_mj())
    assert set(gpu.missing) == {"power", "energy counter"}
    gpu.close()
    with pytest.raises(ValueError, match="MIG"), locked_clocks(0, 1500):
        pass
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    fake.mig = True  # the card itself is named, but CUDA shows its first slice
    assert list_gpu_names()[0] == "NVIDIA H100 80GB HBM3 MIG"


def test_no_driver_and_no_package(fake, monkeypatch):
    fake.broken["nvmlInit"] = "NVML Shared Library Not Found"
    assert list_gpu_names() == ()
    assert device_facts(0) == {}
    with pytest.raises(NvmlUnavailableError, match="no NVIDIA driver answers"):
        Gpu(0)
    with pytest.raises(ValueError, match="cannot lock clocks: no NVIDIA driver"), locked_clocks(0, 1500):
        pass
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert list_gpu_names() == ()
    with pytest.raises(NvmlUnavailableError, match="nvidia-ml-py"):
        Gpu(0)


def test_a_lost_gpu_is_one_line(fake):
    fake.broken["nvmlDeviceGetName"] = "GPU is lost"
    with pytest.raises(NvmlUnavailableError, match=r"^GPU 0 does not answer \(gpu is lost\)$"):
        Gpu(0)
    assert list_gpu_names() == ()


def test_facts_name_no_single_card(fake):
    facts = device_facts(0)
    assert facts == {
        "name": "NVIDIA H100 80GB HBM3",
        "driver_version": "570.124.06",
        "cuda_driver_version": "12.8",
        "power_limit_w": 650.0,
        "default_power_limit_w": 700.0,
        "max_sm_clock_mhz": 1980,
        "max_memory_clock_mhz": 2619,
        "persistence_mode": True,
        "ecc_mode": True,
        "mig_mode": False,
        "vbios_version": "96.00.74.00.01",
    }
    assert "aaaa1111" not in json.dumps(facts)
    assert "1650000000001" not in json.dumps(facts)


def test_facts_leave_out_what_the_card_lacks(fake):
    fake.broken["nvmlDeviceGetEccMode"] = NOT_SUPPORTED
    fake.absent.add("nvmlDeviceGetVbiosVersion")
    facts = device_facts(0)
    assert "ecc_mode" not in facts
    assert "vbios_version" not in facts
    assert facts["mig_mode"] is False


def test_locked_clocks_are_taken_off_on_every_way_out(fake):
    with locked_clocks(1, 1500):
        assert fake.locks == [(1, 1500, 1500)]
    assert fake.locks[1:] == [(1, "reset")]
    with pytest.raises(KeyError), locked_clocks(1, 1500):
        raise KeyError
    assert fake.locks[3:] == [(1, "reset")]


def test_clocks_that_cannot_be_locked(fake):
    with pytest.raises(ValueError, match=r"2500 MHz.*1980 MHz"), locked_clocks(0, 2500):
        pass
    with pytest.raises(ValueError, match="index 5"), locked_clocks(5, 1500):
        pass
    assert fake.locks == []
    fake.broken["nvmlDeviceSetGpuLockedClocks"] = NO_PERMISSION
    with pytest.raises(ValueError, match=r"1500 MHz: insufficient permissions; it needs root"), locked_clocks(0, 1500):
        pytest.fail("the block must not run")
    assert fake.locks == []


def test_a_lock_that_stays_on_is_said_and_hides_no_error(fake, caplog):
    fake.broken["nvmlDeviceResetGpuLockedClocks"] = "GPU is lost"
    with pytest.raises(KeyError), locked_clocks(0, 1500):
        raise KeyError
    assert "nvidia-smi -rgc" in caplog.text


def test_closing_twice_lets_go_once(fake):
    gpu = Gpu(0)
    gpu.close()
    gpu.close()


def test_the_installed_package_has_the_names_used(monkeypatch):
    monkeypatch.undo()
    import inspect
    import re

    import pynvml

    for name in set(re.findall(r"nvml(?:Device|System|Init|Shutdown)\w*", inspect.getsource(nvml))):
        assert hasattr(pynvml, name), name
    assert issubclass(pynvml.NVMLError, Exception)
    assert (pynvml.NVML_CLOCK_SM, pynvml.NVML_CLOCK_MEM, pynvml.NVML_TEMPERATURE_GPU) == (1, 2, 0)
    for bit, reason in nvml.THROTTLE_BITS.items():
        named = "".join(part.capitalize() for part in reason.split("_"))
        named += "Slowdown" if reason == "hw_power_brake" else ""
        assert getattr(pynvml, f"nvmlClocksEventReason{named}") == bit
