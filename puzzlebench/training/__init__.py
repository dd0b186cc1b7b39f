"""What every training here shares: optimisers, schedules and checkpoints. Knows no model and no data."""
