"""A block's latency inside a serving engine: models of N and of 2N copies of it, and the slope between them."""
