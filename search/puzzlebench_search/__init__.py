"""Architecture search over plain numbers: numbers in, choice out; no torch."""
