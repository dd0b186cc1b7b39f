"""Replace-1-block scores: what the parent loses with one block of the library in one layer."""
