"""What each block of an LLM costs on a GPU, which cheaper architecture fits your limits, and what it keeps."""

__version__ = "0.1.0"
