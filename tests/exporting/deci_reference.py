"""What llama.cpp computes from a deci file, in torch: its graph as src/models/deci.cpp builds it, from the file alone.

Independent of the writer under test: names, neighbouring pairs in RoPE, per-layer numbers and what a missing part means
are written down here once more. llama.cpp itself is compared with in tests/engines.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from gguf import GGUFReader


def read(file):
    """Keys and fp32 tensors of a file."""
    reader = GGUFReader(file)
    keys = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {}
    for tensor in reader.tensors:
        data = np.array(tensor.data)
        if tensor.tensor_type.name == "BF16":
            tensors[tensor.name] = torch.from_numpy(data.view(np.int16)).view(torch.bfloat16).float()
        else:
            tensors[tensor.name] = torch.from_numpy(data).float()
    return keys, tensors


def deci_logits(file, ids):
    """Logits [T, vocabulary] for token ids [T]."""
    keys, tensors = read(file)
    assert keys["general.architecture"] == "deci"
    keys = {name.removeprefix("deci."): value for name, value in keys.items()}
    x = tensors["token_embd.weight"][ids]
    for layer in range(keys["block_count"]):
        x = _layer(x, keys, tensors, layer)
    x = _norm(x, tensors["output_norm.weight"], keys)
    return x @ tensors.get("output.weight", tensors["token_embd.weight"]).T


def _layer(x, keys, tensors, layer):
    def get(name):
        return tensors.get(f"blk.{layer}.{name}")

    heads, shared = keys["attention.head_count"][layer], keys["attention.head_count_kv"][layer]
    if keys["feed_forward_length"][layer] == 0:
        return x  # whatever attention it has
    if heads:
        normed = _norm(x, get("attn_norm.weight"), keys)
        if shared == 0:
            x = x + normed @ get("attn_output.weight").T
        else:
            x = x + _attention(normed, keys, get, tensors.get("rope_freqs.weight"), heads, shared)
    normed = _norm(x, get("ffn_norm.weight"), keys)
    gate, up = _product(normed, get, "ffn_gate"), _product(normed, get, "ffn_up")
    return x + _product(torch.nn.functional.silu(gate) * up, get, "ffn_down")


def _attention(x, keys, get, factors, heads, shared):
    size, count = keys["attention.key_length"], len(x)
    query, key, value = (_product(x, get, f"attn_{name}").view(count, -1, size).transpose(0, 1) for name in "qkv")
    query, key = _rotate(query, keys, factors), _rotate(key, keys, factors)
    key, value = (part.repeat_interleave(heads // shared, dim=0) for part in (key, value))
    scores = query @ key.transpose(1, 2) / math.sqrt(size)
    scores = scores.masked_fill(torch.ones(count, count).triu(1).bool(), -math.inf)
    mixed = (scores.softmax(-1) @ value).transpose(0, 1).reshape(count, heads * size)
    return _product(mixed, get, "attn_output")


def _rotate(x, keys, factors):
    size = keys["rope.dimension_count"]
    steps = torch.arange(0, size, 2, dtype=torch.float64)
    angles = keys["rope.freq_base"] ** (-steps / size) / (1.0 if factors is None else factors.double())
    angles = torch.arange(x.shape[1])[:, None] * angles
    if keys.get("rope.scaling.type") == "linear":
        angles = angles / keys["rope.scaling.factor"]
    cos, sin = angles.cos().float(), angles.sin().float()
    one, other = x[..., 0::2], x[..., 1::2]
    return torch.stack([one * cos - other * sin, one * sin + other * cos], dim=-1).flatten(-2)


def _product(x, get, name):
    out = x @ get(f"{name}.weight").T
    return out if get(f"{name}.bias") is None else out + get(f"{name}.bias")


def _norm(x, weight, keys):
    eps = keys["attention.layer_norm_rms_epsilon"]
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight
