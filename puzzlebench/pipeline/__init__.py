"""The whole loop as one run: stages in their order, each skipped where its inputs have not changed."""
