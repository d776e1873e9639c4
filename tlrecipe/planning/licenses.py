"""What licences of pretrained weights forbid, as far as it can be told from their names."""

from __future__ import annotations

# Apple's licence for research only has neither word in its name.
_NON_COMMERCIAL = ("-nc", "noncommercial", "non-commercial", "apple-amlr")


def non_commercial(license: str | None) -> bool:
    """Whether weights under ``license``, a name as the libraries write it, are not for commercial use."""
    return license is not None and any(part in license.lower() for part in _NON_COMMERCIAL)
