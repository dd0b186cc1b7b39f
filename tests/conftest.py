"""What many tests share: measured kernels of one GPU and the parent model of the paper, read once."""

import os

import pytest
from hypothesis import HealthCheck, settings

from puzzlebench.measuring.nvml import list_gpu_names
from puzzlebench.model.catalog import load_model
from puzzlebench.profiling.measured_kernels import MeasuredKernels
from puzzlebench_profiles.datasheets import find_datasheet
from puzzlebench_profiles.kernel_tables import find_kernel_table

settings.register_profile(
    "checks", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)  # the same examples everywhere, on machines of any speed; HYPOTHESIS_PROFILE=explore draws new ones
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "checks"))

# Read when torch and triton are first imported. Two workers with a thread per core each would wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if not list_gpu_names():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def h100_kernels():
    return MeasuredKernels(find_kernel_table("h100_sxm", "trtllm"))


@pytest.fixture(scope="session")
def h100():
    return find_datasheet("h100")


@pytest.fixture(scope="session")
def llama_70b():
    return load_model("llama-3.1-70b")


@pytest.fixture(scope="session")
def llama_8b():
    return load_model("llama-3.1-8b")
