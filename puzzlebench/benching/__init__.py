"""The project's own benchmarks: one suite, timed in fresh processes, for verdicts on changes."""
