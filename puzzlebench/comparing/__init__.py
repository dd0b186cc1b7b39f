"""Two results beside each other: what became slower, how sure that is, and where in the past it changed."""
