"""Ablations of the method: the same limits and text, one thing done otherwise, over several seeds."""
