"""Checks of plain values that several model facts share. Knows nothing about models."""


def require_whole_number(name: str, value: object) -> None:
    """Raise ValueError unless `value` is an int (not a bool) of at least 0."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name} must be a whole number of at least 0, not {value!r}")


def require_positive_int(name: str, value: object) -> None:
    """Raise ValueError unless `value` is an int (not a bool) of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
