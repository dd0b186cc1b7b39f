"""Cost tables of whole search spaces."""

import math

import numpy as np
import pytest

from puzzlebench.model.blocks import sub_block_name
from puzzlebench.model.catalog import list_models, load_model
from puzzlebench.model.memory import model_weight_bytes
from puzzlebench.model.parameters import model_parameters
from puzzlebench.model.space import default_space, space_of
from puzzlebench.profiling.profile import Grid, build_cost_table
from puzzlebench.profiling.sources import open_kernels
from puzzlebench.scenario import Precision

LATENCIES = ["latency_low_us", "latency_us", "latency_high_us"]
SMALL = Grid(batch_sizes=(1, 16), prefill_lens=(512,), context_lens=(512, 2048))


@pytest.fixture(scope="module")
def table(h100_kernels, h100, llama_70b):
    spec, architecture = llama_70b
    precision = Precision(weight_dtype="fp8", kv_dtype="fp8")
    return build_cost_table(h100_kernels, h100, spec, default_space(spec, architecture), precision, Grid())


def profile(model="llama-3.1-70b", gpu="h100", engine="trtllm", grid=SMALL, **precision):
    datasheet, kernels = open_kernels(gpu, engine)
    spec, architecture = load_model(model)
    return build_cost_table(kernels, datasheet, spec, default_space(spec, architecture), Precision(**precision), grid)


def latencies(frame, part, phase):
    rows = frame[(frame["part"] == part) & (frame["phase"] == phase)]
    return rows.pivot_table(index=["batch_size", "context_len"], columns="sub_block", values="latency_us")


def test_llama_70b_has_the_54_pairs_of_the_paper(table):
    names = {part: rows["sub_block"].unique().tolist() for part, rows in table.frame.groupby("part")}
    widths = (28672, 25088, 21504, 14336, 7168, 5632, 2816)
    assert names["attention"] == ["gqa_8", "gqa_4", "gqa_2", "gqa_1", "linear", "no_op"]
    assert names["ffn"] == [*(f"mlp_{width}" for width in widths), "linear", "no_op"]
    assert (names["embedding"], names["head"]) == (["embedding"], ["head"])


def test_every_key_is_there_once(table):
    frame, grid = table.frame, Grid()
    for phase, lengths in (("prefill", grid.prefill_lens), ("decode", grid.context_lens)):
        rows = frame[frame["phase"] == phase]
        keys = set(zip(rows["part"], rows["sub_block"], rows["batch_size"], rows["context_len"], strict=True))
        assert len(rows) == len(keys) == 17 * len(grid.batch_sizes) * len(lengths)
        assert set(rows["context_len"]) == set(lengths)
        assert set(rows["batch_size"]) == set(grid.batch_sizes)
    assert frame[
        ["gpu", "engine", "weight_dtype", "kv_dtype", "tensor_parallel"]
    ].drop_duplicates().values.tolist() == [["h100_sxm", "trtllm", "fp8", "fp8", 1]]


def test_intervals_hold_the_latency_and_only_no_ops_are_free(table):
    low, middle, high = (table.frame[column].to_numpy() for column in LATENCIES)
    idle = (table.frame["sub_block"] == "no_op").to_numpy()
    assert (low[idle] == 0).all()
    assert (high[idle] == 0).all()
    assert ((low > 0) & (low < middle) & (middle < high))[~idle].all()
    assert (high[~idle] < 4 * middle[~idle]).all()


def test_a_wider_ffn_costs_more(table):
    for phase in ("prefill", "decode"):
        by_width = latencies(table.frame, "ffn", phase)
        widths = sorted((name for name in by_width if name.startswith("mlp_")), key=lambda name: int(name[4:]))
        assert (np.diff(by_width[widths].to_numpy(), axis=1) > 0).all()
        assert (by_width["linear"] < by_width["mlp_5632"]).all()


def test_more_key_value_heads_cost_more_in_prefill(table):
    by_heads = latencies(table.frame, "attention", "prefill")
    assert (by_heads["gqa_8"] > 0.99 * by_heads["gqa_4"]).all()
    assert (by_heads["gqa_8"] > by_heads["gqa_1"] * 0.99).all()


def test_a_single_key_value_head_is_slow_in_decode_as_measured(table):
    # TensorRT-LLM has no fast decode kernel for 64 query heads on one key-value head: 335 us against 58 for two.
    by_heads = latencies(table.frame, "attention", "decode")
    assert by_heads.loc[(64, 1024), "gqa_1"] > 2 * by_heads.loc[(64, 1024), "gqa_8"]


def test_prefill_costs_more_for_longer_prompts_and_larger_batches(table):
    for part in ("attention", "ffn"):
        rows = latencies(table.frame, part, "prefill").drop(columns="no_op").reset_index()
        for _, of_batch in rows.groupby("batch_size"):
            assert (np.diff(of_batch.drop(columns=["batch_size", "context_len"]).to_numpy(), axis=0) > 0).all()
        for _, of_length in rows.groupby("context_len"):
            assert (np.diff(of_length.drop(columns=["batch_size", "context_len"]).to_numpy(), axis=0) > 0).all()


def test_decode_ffn_does_not_depend_on_the_cache(table):
    rows = table.frame[(table.frame["phase"] == "decode") & table.frame["part"].isin(["ffn", "embedding", "head"])]
    assert (rows.groupby(["part", "sub_block", "batch_size"])["latency_us"].nunique() == 1).all()


def test_cache_bytes(table):
    rows = table.frame[table.frame["part"] == "attention"]
    bytes_ = rows.groupby("sub_block")["kv_bytes_per_token"].unique().map(lambda found: found.item())
    assert bytes_.to_dict() == {"gqa_8": 2048, "gqa_4": 1024, "gqa_2": 512, "gqa_1": 256, "linear": 0, "no_op": 0}
    assert (table.frame[table.frame["part"] != "attention"]["kv_bytes_per_token"] == 0).all()


@pytest.mark.parametrize(("weights", "tp"), [("bf16", 1), ("fp8", 1), ("fp8", 8)])
def test_weight_bytes_add_up_to_the_model(llama_70b, weights, tp):
    spec, architecture = llama_70b
    frame = profile(weight_dtype=weights, tensor_parallel=tp, grid=Grid(batch_sizes=(1,))).frame
    bytes_ = frame.drop_duplicates(["part", "sub_block"]).set_index(["part", "sub_block"])["weight_bytes"]
    blocks = 80 * (bytes_["attention", "gqa_8"] + bytes_["ffn", "mlp_28672"])
    whole = blocks + bytes_["embedding", "embedding"] + bytes_["head", "head"]
    assert whole == model_weight_bytes(spec, architecture, weight_dtype=weights, tensor_parallel=tp)
    if (weights, tp) == ("bf16", 1):
        assert whole == 2 * model_parameters(spec, architecture)


def test_provenance_is_that_of_the_kernels(table):
    rows = table.frame.set_index(["part", "sub_block", "phase", "batch_size", "context_len"])
    trust = rows["provenance"]
    assert trust["attention", "gqa_8", "decode", 64, 1024] == "measured"
    assert trust["attention", "gqa_4", "decode", 64, 1024] == "interpolated"  # its query-key-value GEMM is 9216 wide
    assert trust["attention", "gqa_8", "decode", 128, 8192] == "extrapolated"
    assert trust["ffn", "linear", "decode", 1, 128] == "measured"
    assert trust["ffn", "mlp_28672", "decode", 1, 128] == "interpolated"
    assert trust["head", "head", "decode", 1, 128] == "extrapolated"  # wider than any measured GEMM
    assert trust["embedding", "embedding", "decode", 1, 128] == "modelled"
    measured = table.frame["provenance"] == "measured"
    idle = table.frame["sub_block"] == "no_op"
    assert (table.frame.loc[measured & ~idle, "samples"] == 6).all()
    assert (table.frame.loc[~measured | idle, "samples"] == 0).all()


def test_metadata_says_what_was_run(table):
    assert table.metadata["model"]["name"] == "llama-3.1-70b"
    assert table.metadata["gpu"]["name"] == "h100_sxm"
    assert table.metadata["settings"]["max_num_tokens"] == 8192
    assert "aiconfigurator-core" in table.metadata["source"]
    assert {"puzzlebench_version", "created"} <= table.metadata.keys()


def test_two_gpus_halve_the_bytes_and_speed_up_what_is_large():
    keys = ["part", "sub_block", "phase", "batch_size", "context_len"]
    one, two = (profile(tensor_parallel=tp).frame.set_index(keys).sort_index() for tp in (1, 2))
    cache = two.loc["attention"]["kv_bytes_per_token"].groupby("sub_block").first()
    assert (cache["gqa_8"], cache["gqa_1"]) == (2048, 512)  # of 4096, and of 512: a single head is on both GPUs
    ratio = one["weight_bytes"] / two["weight_bytes"].replace(0, math.nan)
    split = ~ratio.index.get_level_values("sub_block").isin(["no_op", "gqa_1"])
    assert ratio[split].to_numpy() == pytest.approx(2, rel=1e-3)
    speed_up = one["latency_us"] / two["latency_us"]
    for part, name in (("attention", "gqa_8"), ("ffn", "mlp_28672")):
        assert 1.3 < speed_up[part, name, "prefill", 16, 512] < 2.1
        assert 1.2 < speed_up[part, name, "decode", 1, 512] < 2


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_other_engines_run_rope_as_a_kernel_of_its_own(engine):
    ours, theirs = (profile("llama-3.1-8b", engine=name).frame for name in ("trtllm", engine))
    assert set(theirs["engine"]) == {engine}

    def share(frame):
        return frame[(frame["sub_block"] == "gqa_8") & (frame["phase"] == "prefill")]["modelled_share"].mean()

    assert share(theirs) > 1.2 * share(ours)
    joined = ours["latency_us"] / theirs["latency_us"]
    assert 0.5 < joined.median() < 2


@pytest.mark.parametrize("model", [row.id for row in list_models()])
def test_every_bundled_model_has_a_table(h100_kernels, h100, model):
    spec, architecture = load_model(model)
    grid = Grid(batch_sizes=(1,), prefill_lens=(1000,), context_lens=(1000,))
    frame = build_cost_table(h100_kernels, h100, spec, space_of(architecture), Precision(), grid).frame
    costs = frame[frame["sub_block"] != "no_op"]
    assert ((costs["latency_us"] > 0.5) & (costs["latency_us"] < 1e5)).all()
    decode = frame[(frame["phase"] == "decode")].set_index(["part", "sub_block"])["latency_us"]
    names = [(part, getattr(block, part)) for block in architecture.blocks for part in ("attention", "ffn")]
    token_us = sum(decode[part, sub_block_name(sub)] for part, sub in names) + decode["head", "head"]
    least_us = 2 * model_parameters(spec, architecture) / h100.memory_bandwidth * 1e6
    assert token_us > 0.9 * least_us  # every weight is read once per token
    assert token_us < 3 * least_us + 80 * spec.num_hidden_layers


def test_a_dtype_that_was_not_measured_is_named():
    with pytest.raises(ValueError, match=r"trtllm 1.0.0 has no measured gemm with fp8 on a100_sxm"):
        profile(gpu="a100", weight_dtype="fp8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_sizes": ()}, "batch_sizes must not be empty"),
        ({"prefill_lens": (0,)}, "prefill_lens must be a whole number of at least 1, not 0"),
        ({"context_lens": (8, 16, 8)}, "context_lens repeat a value: 8, 16, 8"),
    ],
)
def test_a_grid_must_make_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        Grid(**changes)


def test_the_limit_of_a_step_must_be_positive(h100_kernels, h100, llama_8b):
    spec, architecture = llama_8b
    with pytest.raises(ValueError, match="max_num_tokens must be a whole number of at least 1, not 0"):
        build_cost_table(h100_kernels, h100, spec, space_of(architecture), Precision(), SMALL, max_num_tokens=0)
