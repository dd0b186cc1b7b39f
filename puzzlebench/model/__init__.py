"""Model facts: blocks, specs, search spaces, parameter and memory counts. Knows nothing about timings."""
