"""Hardware datasheets and measured tables, shipped as package data. Holds data and paths, no logic."""

from pathlib import Path

_SERVING = Path(__file__).parent / "serving"
SERVING_FILE = _SERVING / "runs.csv"
"""Measured serving runs of dense models under in-flight batching, from the source of the kernel tables."""
SERVING_BENCHMARKS = _SERVING / "benchmarks.json"
"""How those runs were made, as far as it is known, with sources; and which runs were left out, and why."""
PUBLISHED_FILE = _SERVING / "published.csv"
"""Throughputs that TensorRT-LLM's documentation publishes."""
