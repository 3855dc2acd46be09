"""NumPy in, JSON out."""

from typing import Any

import numpy as np

DIGITS = 6


def to_json(value: Any) -> Any:
    """Plain Python for json.dumps: floats with six digits, and None for NaN and infinities."""
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, np.ndarray):
        return to_json(value.tolist())
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return round(float(value), DIGITS) if np.isfinite(value) else None
    return str(value) if isinstance(value, str) else value
