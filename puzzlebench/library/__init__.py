"""The block library: calibration statistics of a parent, and weights with which smaller sub-blocks start."""
