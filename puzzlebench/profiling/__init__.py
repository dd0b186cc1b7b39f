"""Kernel timings and the cost tables composed from them."""
