"""Global distillation (GKD) of a realised child from its parent, on one device or many (Puzzle, arXiv 2411.19146)."""
