"""Hardware datasheets and measured tables, shipped as package data. Holds data and paths, no logic."""

from pathlib import Path

SERVING_FILE = Path(__file__).parent / "serving" / "llama-3.1-70b.csv"
"""Measured serving runs (static fp8 Llama-3.1-70B under in-flight batching) from the source of the kernel tables."""
