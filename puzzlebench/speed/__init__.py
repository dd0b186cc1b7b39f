"""Measured speed of real checkpoints, parent beside children, and what a cost table predicts of it."""
