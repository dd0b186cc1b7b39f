"""Triton kernels with torch references: tensors in, tensors out."""
