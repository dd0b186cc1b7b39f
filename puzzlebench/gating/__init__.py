"""Gates: two revisions measured in turn on one machine, and predictions of the cost model against goldens."""
