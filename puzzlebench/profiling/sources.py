"""Which source of kernel timings answers for a GPU: the one list of them."""

from __future__ import annotations

from puzzlebench.profiling.measured_kernels import MeasuredKernels
from puzzlebench.profiling.modelled_kernels import ModelledKernels
from puzzlebench.profiling.timings import KernelTimings
from puzzlebench_profiles.datasheets import Datasheet, bundled_datasheets, find_datasheet
from puzzlebench_profiles.kernel_tables import find_kernel_table

ENGINES = ("trtllm", "vllm", "sglang")
_ALIASES = {"tensorrt-llm": "trtllm", "tensorrt_llm": "trtllm"}


def engine_name(name: str) -> str:
    """The name tables use for an engine: lower case, TensorRT-LLM in whichever spelling as trtllm."""
    return _ALIASES.get(name.lower(), name.lower())


def open_kernels(
    gpu: str, engine: str = "trtllm", engine_version: str | None = None
) -> tuple[Datasheet, KernelTimings]:
    """The datasheet and the kernel timings of a GPU: measured ones for a bundled GPU, modelled for a datasheet file.

    Raises:
        ValueError: the GPU, engine or version is unknown, or the datasheet cannot be read.
    """
    engine = engine_name(engine)
    datasheet = find_datasheet(gpu)
    if bundled_datasheets().get(datasheet.name) is datasheet:
        return datasheet, MeasuredKernels(find_kernel_table(datasheet.name, engine, engine_version))
    kernels = ModelledKernels(datasheet, engine)
    if engine_version not in (None, kernels.engine_version):
        raise ValueError(
            f"{engine} {engine_version} was not measured on {kernels.donor.name}, which {datasheet.name} is modelled "
            f"on; measured version: {kernels.engine_version}"
        )
    return datasheet, kernels
