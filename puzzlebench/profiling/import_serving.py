"""Bring the measured serving runs of an installed `aiconfigurator-core` into the package's own data folder.

Run by maintainers: `python -m puzzlebench.profiling.import_serving`. It keeps runs of dense models whose kernels the
package has in their number formats; what it leaves out, and why, is written in serving/benchmarks.json, beside what is
known of how the runs were made. It splits them once into a develop and a report half by their ids, so that the split
never depends on the numbers.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from puzzlebench.profiling.import_kernels import systems_folder
from puzzlebench_profiles import SERVING_FILE

COLUMNS: Final = (
    "id",
    "benchmark",
    "gpu",
    "engine",
    "engine_version",
    "model",
    "weight_dtype",
    "kv_dtype",
    "tensor_parallel",
    "prefill_len",
    "decode_len",
    "concurrency",
    "ttft_ms",
    "tpot_ms",
    "split",
)
_CONCURRENCY: Final = re.compile(r"silicon_concurrency=(\d+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Selection:
    """Runs of the source that are kept; `precision` as the source spells it, `versions` those of the engine."""

    benchmark: str
    source_model: str
    model: str
    gpus: tuple[str, ...]
    engine: str
    versions: tuple[str, ...]
    precision: str
    weight_dtype: str
    kv_dtype: str

    def keeps(self, row: dict[str, str]) -> bool:
        asked = self.source_model, self.engine, self.precision
        return (
            (row["model_path"], row["backend"], row["precision"]) == asked
            and row["system"] in self.gpus
            and row["backend_version"] in self.versions
            and row["mode"] == "agg"
        )


_SELECTIONS: Final = (
    _Selection(
        benchmark="inferencemax_trtllm",
        source_model="meta-llama/Llama-3.1-70B",
        model="llama-3.1-70b",
        gpus=("h200_sxm", "b200_sxm"),
        engine="trtllm",
        versions=("",),
        precision="fp8",
        weight_dtype="fp8",
        kv_dtype="fp8",
    ),
    _Selection(
        benchmark="inferencemax_vllm",
        source_model="meta-llama/Llama-3.1-70B",
        model="llama-3.1-70b",
        gpus=("h100_sxm", "h200_sxm", "b200_sxm"),
        engine="vllm",
        versions=("",),
        precision="fp8",
        weight_dtype="fp8",
        kv_dtype="fp8",
    ),
    _Selection(
        benchmark="aic_gap",
        source_model="meta-llama/Llama-3.1-8B-Instruct",
        model="llama-3.1-8b",
        gpus=("h100_sxm",),
        engine="trtllm",
        versions=("1.0.0rc3",),
        precision="",
        weight_dtype="bf16",
        kv_dtype="bf16",
    ),
)


def import_serving_runs(source: Path, out: Path) -> int:
    """Write the runs that are kept of the source's CSV file, and return their number.

    Raises:
        ValueError: the source cannot be read, or a run is split in ways that are not modelled.
    """
    try:
        with source.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise ValueError(f"cannot read {source}: {error.strerror}") from None
    runs = [_run(row, selection) for row in rows for selection in _SELECTIONS if selection.keeps(row)]
    numbers = ("tensor_parallel", "prefill_len", "decode_len", "concurrency")
    runs.sort(key=lambda run: (*(str(run[name]) for name in COLUMNS[1:6]), *(int(run[name]) for name in numbers)))
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(runs)
    return len(runs)


def split_of(run_id: str) -> str:
    """`develop` when the sha256 of the id is even, else `report`."""
    return "report" if hashlib.sha256(run_id.encode()).digest()[-1] % 2 else "develop"


def _run(row: dict[str, str], selection: _Selection) -> dict[str, str | int | float]:
    for column in ("pp_size", "attention_dp_size"):
        if row[column] not in ("", "1"):
            raise ValueError(f"{row['id']}: {column} is {row[column]}; only 1 is modelled")
    stated = _CONCURRENCY.search(row["silicon_data_source"])
    return {
        "id": row["id"],
        "benchmark": selection.benchmark,
        "gpu": row["system"],
        "engine": row["backend"],
        "engine_version": row["backend_version"],
        "model": selection.model,
        "weight_dtype": selection.weight_dtype,
        "kv_dtype": selection.kv_dtype,
        "tensor_parallel": int(float(row["tp_size"])),
        "prefill_len": int(float(row["isl"])),
        "decode_len": int(float(row["osl"])),
        "concurrency": int(stated[1]) if stated else int(float(row["batch_size"])),
        "ttft_ms": round(float(row["silicon_ttft_ms"]), 3),
        "tpot_ms": round(float(row["silicon_tpot_ms"]), 4),
        "split": split_of(row["id"]),
    }


def main() -> None:
    """Command line: rewrite the package's serving runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, help="default: silicon_sample.csv of the installed package")
    parser.add_argument("--out", type=Path, default=SERVING_FILE)
    arguments = parser.parse_args()
    source = arguments.source or systems_folder() / "silicon_sample.csv"
    print(f"{import_serving_runs(source, arguments.out)} runs written to {arguments.out}")


if __name__ == "__main__":
    main()
