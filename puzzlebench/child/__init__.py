"""Children of a parent model: heterogeneous causal LMs in transformers, built, taken apart, saved and loaded."""
