"""Every kernel compiles for Hopper, with 16-byte accesses at real sizes; no GPU is needed to compile.

The interpreter accepts programs that the compiler does not, so a process without it launches every kernel through its
launcher, with a stub for the driver and a launch that stops after compiling.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

COMPILE = """
import json

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction


class NoDriver:
    get_current_device = lambda self: 0
    get_current_stream = lambda self, device: 0
    get_current_target = lambda self: GPUTarget("cuda", 90, 32)
    get_benchmarker = lambda self: lambda call, quantiles: (call(), [1.0, 1.0, 1.0])[1]


driver.set_active(NoDriver())
compiled = {}
run = JITFunction.run


def compile_only(self, *args, grid, warmup, **options):
    kernel = run(self, *args, grid=grid, warmup=True, **options)
    compiled.setdefault(label + self.fn.__name__, kernel.asm["ptx"])
    return kernel


JITFunction.run = compile_only

from puzzlebench_kernels.decode_attention import paged_decode_attention
from puzzlebench_kernels import losses
from puzzlebench_kernels.losses import kl_divergence, normalised_mse
from puzzlebench_kernels.rms_norm import add_rms_norm
from puzzlebench_kernels.rope_append import rope_append_
from puzzlebench_kernels.swiglu import swiglu

BF16, FP8, FP32, INT32, INT64 = torch.bfloat16, torch.float8_e4m3fn, torch.float32, torch.int32, torch.int64
empty = lambda *shape, dtype=BF16: torch.empty(shape, dtype=dtype)

losses._kl_kernel.configs = losses._kl_kernel.configs[:1]  # each takes a second to compile
label = ""
add_rms_norm(empty(64, 5120), empty(64, 5120), empty(5120), 1e-5)
torch.autograd.grad(swiglu(x := empty(64, 5632).requires_grad_()), x, empty(64, 2816))
torch.autograd.grad(normalised_mse(x := empty(64, 4096).requires_grad_(), empty(64, 4096)), x)
for label, reverse in (("", False), ("reverse", True)):
    torch.autograd.grad(kl_divergence(x := empty(64, 128256).requires_grad_(), empty(64, 128256), reverse=reverse), x)
for label, dtype in (("bf16", BF16), ("fp8", FP8)):
    tables = [empty(99, 64, dtype=FP32)] * 2 + [empty(128, dtype=INT32)]
    caches = [empty(9, 16, 8, 128, dtype=dtype) for _ in range(2)]
    heads = dict(num_heads=32, num_kv_heads=8, head_dim=128)
    rope_append_(empty(128, 6144), *tables, *caches, empty(128, dtype=INT64), **heads)
for label, group, head_dim, dtype, splits in (("bf16", 8, 128, BF16, 4), ("fp8", 1, 96, FP8, 1)):
    caches = [empty(9, 16, 2, head_dim, dtype=dtype) for _ in range(2)]
    pages = empty(4, 64, dtype=INT32), empty(4, dtype=INT32)
    paged_decode_attention(empty(4, 2 * group, head_dim), *caches, *pages, max_length=1024, num_splits=splits)
print(json.dumps(compiled))
"""


def test_kernels_compile_for_hopper() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2] / "kernels")
    result = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    compiled = json.loads(result.stdout)
    assert len(compiled) == 14, sorted(compiled)
    for name, ptx in compiled.items():
        if "_decode_kernel" in name:
            assert re.search(r"cp\.async\.cg\.shared\.global [^;]*, 0x10", ptx), f"{name}: no 16-byte copies"
            assert "mma.sync" in ptx, f"{name}: no matrix instructions"
        elif "_reduce_kernel" not in name:
            wide = re.search(r"(ld\.global[^;]*\.v4|cp\.async\.cg\.shared\.global [^;]*, 0x10)", ptx)
            assert wide, f"{name}: no 16-byte loads"
