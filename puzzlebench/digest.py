"""Short names for what is stated in JSON."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def short_digest(stated: Any) -> str:
    """Twelve hexadecimal digits of the SHA-256 of a JSON-ready value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()[:12]
