"""From a cost table, a score table and scenarios to search problems, and back to architectures that keep the limits."""
