"""A source of kernel latencies that writes down what it was asked."""

import numpy as np
import pytest

from puzzlebench.profiling.timings import MEASURED, Timings


def scalar(value):
    array = np.atleast_1d(np.asarray(value, dtype=float))
    assert len(array) == 1, "the recorder takes one question at a time"
    return float(array[0])


class RecordingKernels:
    """Fills KernelTimings: each kernel costs a different power of ten, and is kept with its arguments."""

    engine, engine_version, source = "trtllm", "0", "a test"

    def __init__(self, *, fuses_rope=True):
        self.fuses_rope = fuses_rope
        self.calls = []

    def _answer(self, latency_us, *call):
        self.calls.append(call)
        value = np.array([latency_us])
        return Timings(
            latency_us=value,
            low_us=value * 0.9,
            high_us=value * 1.2,
            provenance=np.array([MEASURED]),
            modelled_us=value if call[0] == "elementwise" else np.zeros(1),
        )

    def gemm(self, m, n, k, dtype):
        return self._answer(1.0, "gemm", scalar(m), n, k, dtype)

    def prefill_attention(self, batch, seq_len, *, heads, kv_heads, head_dim, dtype, kv_dtype):
        shape = (scalar(batch), scalar(seq_len), heads, kv_heads, head_dim)
        return self._answer(10.0, "prefill_attention", *shape, dtype, kv_dtype)

    def decode_attention(self, batch, context, *, heads, kv_heads, head_dim, kv_dtype):
        shape = (scalar(batch), scalar(context), heads, kv_heads, head_dim)
        return self._answer(100.0, "decode_attention", *shape, kv_dtype)

    def elementwise(self, bytes_):
        return self._answer(1000.0, "elementwise", scalar(bytes_))

    def all_reduce(self, elements, gpus):
        return self._answer(10000.0, "all_reduce", scalar(elements), gpus)


@pytest.fixture
def recorder():
    return RecordingKernels()


@pytest.fixture
def recorder_without_rope():
    return RecordingKernels(fuses_rope=False)
