"""Bring the measured kernel tables of an installed `aiconfigurator-core` into the package's own data folder.

Run by maintainers when that package publishes new measurements: `python -m puzzlebench.profiling.import_kernels`.
It keeps numbers only (shape, latency), one file per kernel kind, and writes a manifest with the source's version,
licence and checksums. It makes no judgement of the numbers, apart from choosing, where one engine was measured with
several kernels for the same shape, the one that the engine would pick.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import json
from pathlib import Path

import pandas as pd

from puzzlebench_profiles.kernel_tables import KERNEL_DIR, MANIFEST, TABLE_COLUMNS, TEXT_COLUMNS

# GPU -> engine -> version, as the source package's query_versions.yaml names the current ones.
_DEFAULT = {"trtllm": "1.3.0rc20", "vllm": "0.24.0", "sglang": "0.5.14"}
_TABLES = dict.fromkeys(("h100_sxm", "h200_sxm", "l40s", "b200_sxm", "gb200", "rtx_pro_6000"), _DEFAULT) | {
    "a100_sxm": {"trtllm": "1.0.0", "vllm": "0.14.0", "sglang": "0.5.10"}
}
_SOURCE_GPU = {"rtx_pro_6000": "rtx_pro_6000_server"}
_DTYPES = {"bfloat16": "bf16", "fp8": "fp8"}
# The kernel an engine picks first, by what its name contains; earlier wins.
_KERNEL_ORDER = ("trtllm", "fa3", "fa2", "flash_attn", "torch_flow_flashinfer", "torch_flow", "flashinfer", "triton")
_RENAME = {
    "gemm": {"gemm_dtype": "dtype"},
    "context_attention": {
        "batch_size": "batch",
        "isl": "seq_len",
        "num_heads": "heads",
        "num_key_value_heads": "kv_heads",
        "window_size": "window",
        "attn_dtype": "dtype",
        "kv_cache_dtype": "kv_dtype",
    },
    "quantize": {"quant_dtype": "dtype"},
    "custom_allreduce": {"message_size": "elements", "allreduce_dtype": "dtype"},
}
_RENAME["generation_attention"] = _RENAME["context_attention"]


def main() -> None:
    """Command line: rewrite the package's kernel tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=KERNEL_DIR)
    arguments = parser.parse_args()
    import_kernels(arguments.out)


def import_kernels(out: Path) -> None:
    """Write `out/<gpu>/<engine>-<version>/<kind>.parquet` and `out/manifest.json`.

    Raises:
        ValueError: `aiconfigurator-core` is not installed.
    """
    systems = systems_folder()
    files: dict[str, dict[str, object]] = {}
    for gpu, engines in _TABLES.items():
        for engine, version in engines.items():
            source = systems / "data" / _SOURCE_GPU.get(gpu, gpu)
            for kind, table in _engine_tables(source, engine, version).items():
                path = out / gpu / f"{engine}-{version}" / f"{kind}.parquet"
                path.parent.mkdir(parents=True, exist_ok=True)
                table.to_parquet(path, index=False, compression="zstd", compression_level=19)
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                files[str(path.relative_to(out))] = {"rows": len(table), "sha256": digest}
    package = "aiconfigurator-core"
    manifest = {
        "source": package,
        "source_version": importlib.metadata.version(package),
        "licence": "Apache-2.0",
        "method": "each row is the source's mean of CUDA-graph replays; the source records no clocks, driver or date",
        "files": files,
    }
    (out / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def systems_folder() -> Path:
    """Where the installed source package keeps its tables.

    Raises:
        ValueError: it is not installed.
    """
    found = importlib.util.find_spec("aiconfigurator_core")
    if found is None or found.origin is None:
        raise ValueError("aiconfigurator-core is not installed: pip install 'puzzlebench[peers]'")
    return Path(found.origin).parent / "systems"


def _engine_tables(source: Path, engine: str, version: str) -> dict[str, pd.DataFrame]:
    at = f"{engine}/{version}"
    tables = {
        "gemm": _tidy(source / "gemm" / at / "gemm_perf.parquet", "gemm"),
        "prefill_attention": _tidy(source / "attention" / at / "context_attention_perf.parquet", "context_attention"),
        "decode_attention": _tidy(
            source / "attention" / at / "generation_attention_perf.parquet", "generation_attention"
        ),
        "all_reduce": _tidy(_all_reduce_file(source / "comm" / engine, version), "custom_allreduce"),
    }
    scale = source / "quantize" / at / "computescale_perf.parquet"
    if scale.exists():
        tables["compute_scale"] = _tidy(scale, "quantize")
        tables["quantise"] = _tidy(scale.with_name("scale_matrix_perf.parquet"), "quantize")
    return {kind: _select(table, kind) for kind, table in tables.items()}


def _all_reduce_file(folder: Path, version: str) -> Path:
    """The all-reduce table of this engine version, or of the version nearest to it in name order."""
    files = sorted(folder.glob("*/custom_allreduce_perf.parquet"), key=lambda path: path.parent.name)
    exact = [path for path in files if path.parent.name == version]
    return (exact or files)[-1]


def _tidy(path: Path, kind: str) -> pd.DataFrame:
    frame = pd.read_parquet(path)
    if kind == "generation_attention":
        frame["seq_len"] = 0
        frame["context"] = frame["isl"].astype("int64") + frame["step"].astype("int64")
        frame = frame.drop(columns="isl")
    frame = frame.rename(columns=_RENAME[kind])
    if "window" in frame:  # sliding windows were measured for two odd head sizes only
        frame = frame[frame["window"] == 0]
    for column in TEXT_COLUMNS:
        if column in frame:
            frame[column] = frame[column].map(_DTYPES)
    frame = frame.dropna(subset=[c for c in TEXT_COLUMNS if c in frame])
    frame["latency_us"] = (frame["latency"].astype("float64") * 1e3).round(4)
    return frame


def _select(frame: pd.DataFrame, kind: str) -> pd.DataFrame:
    if kind == "all_reduce":
        frame = frame[~frame["kernel_source"].str.contains("eager")]
    rank = frame["kernel_source"].map(_kernel_rank)
    columns = TABLE_COLUMNS[kind]
    keys = [column for column in columns if column != "latency_us"]
    frame = frame.assign(rank=rank).sort_values([*keys, "rank"], kind="stable")
    frame = frame.drop_duplicates(keys)[list(columns)]
    frame = frame[frame["latency_us"] > 0]
    for column in columns:
        if column == "latency_us":
            frame[column] = frame[column].astype("float32")
        elif column not in TEXT_COLUMNS:
            frame[column] = frame[column].astype("int64")
    return frame.reset_index(drop=True)


def _kernel_rank(name: str) -> int:
    return next((i for i, part in enumerate(_KERNEL_ORDER) if part in name), len(_KERNEL_ORDER))


if __name__ == "__main__":
    main()
