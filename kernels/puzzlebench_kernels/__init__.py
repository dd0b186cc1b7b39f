"""Triton kernels with torch references: tensors in, tensors out.

This package knows nothing of models, layers or cost tables, and importing it imports no triton: that comes with
the module of a kernel.

- `rms_norm`: `add_rms_norm`
- `swiglu`: `swiglu`
- `rope_append`: `rope_append_`
- `decode_attention`: `paged_decode_attention`
- `losses`: `normalised_mse`, `kl_divergence`, `linear_kl_divergence`
- `benchmark`: `run`, which times them next to torch
"""
