"""Derived models as stock engines load them: Hub-style folders, GGUF files, their cards, and the way back."""
