"""Timing real blocks on the GPU or CPU in hand."""
