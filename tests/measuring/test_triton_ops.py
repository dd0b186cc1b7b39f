"""The Triton operations in the interpreter compute what the torch ones compute, through whole sub-blocks."""

import os

import pytest
import torch

pytest.importorskip("triton")
from dataclasses import replace

from puzzlebench.measuring.block_engine import BlockEngine
from puzzlebench.measuring.ops import TorchOps
from puzzlebench.measuring.triton_ops import TritonOps
from puzzlebench.measuring.workload import Workload
from puzzlebench.model.catalog import load_model
from puzzlebench.scenario import Precision

if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("the interpreter was not switched on before triton was imported", allow_module_level=True)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def engine(ops, spec):
    return BlockEngine(ops, spec, Precision(weight_dtype="fp32", kv_dtype="fp32"), DEVICE, version="0")


def outputs(ops, spec, sub_block, phase, batch_size, context_len):
    part = "attention" if sub_block.startswith("gqa") else "ffn"
    made = engine(ops, spec)
    work = Workload(part=part, sub_block=sub_block, phase=phase, batch_size=batch_size, context_len=context_len)
    block = made.prepare(work, copies=1)
    with torch.inference_mode():
        stream = block.launch(0)
    return stream.delta, stream.residual


@pytest.mark.parametrize("placement", ["pre", "both"])
@pytest.mark.parametrize("qk_norm", ["none", "per_head"])
@pytest.mark.parametrize(("phase", "sub_block"), [("prefill", "gqa_2"), ("prefill", "gqa_2_w7"), ("prefill", "mlp_64")])
def test_a_sub_block_is_the_same(phase, sub_block, qk_norm, placement):
    spec, _ = load_model("embedded")
    spec = replace(spec, qk_norm=qk_norm, norm_placement=placement)
    ours = outputs(TritonOps(Precision(weight_dtype="fp32", kv_dtype="fp32")), spec, sub_block, phase, 2, 19)
    theirs = outputs(TorchOps(torch.float32), spec, sub_block, phase, 2, 19)
    for got, wanted in zip(ours, theirs, strict=True):
        # float32 sums of up to 256 terms of unit size in another order
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("window", [None, 9])
def test_decode_reads_what_prefill_appended(window):
    """A prompt's last token, decoded against the cache its prefill filled, comes out as prefill computed it."""
    from puzzlebench.measuring.ops import AttentionStep, rotation

    ops = TritonOps(Precision(weight_dtype="fp32", kv_dtype="fp32"))
    step = AttentionStep(
        phase="prefill",
        batch_size=2,
        length=37,
        num_heads=4,
        num_kv_heads=2,
        head_dim=64,
        window=window,
        rotation=rotation(37, 64, DEVICE),
    )
    storage = torch.zeros(ops.cache_bytes(step), dtype=torch.uint8, device=DEVICE)
    qkv = torch.randn(2 * 37, 8 * 64, device=DEVICE)
    last = qkv.view(2, 37, -1)[:, -1].clone()
    whole = ops.attend(qkv, ops.new_cache(step, storage), step).view(2, 37, -1)[:, -1]
    decode = replace(step, phase="decode")
    cache = ops.new_cache(decode, storage)
    # The decode step appends the same token to the same place, so what it attends to is what prefill left.
    torch.testing.assert_close(ops.attend(last, cache, decode), whole, rtol=1e-4, atol=1e-4)
