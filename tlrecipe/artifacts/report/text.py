"""Numbers and foreign names as people read them."""

from __future__ import annotations

import unicodedata

# Joiners that scripts and emoji are written with; all other format characters only mislead.
_KEPT = {"\u200c", "\u200d"}


def visible(text: str) -> str:
    """``text`` with what would act and not be seen shown as an escape: control characters, direction
    overrides, invisible characters, bytes that are not UTF-8."""
    if text.isprintable():
        return text
    return "".join(_escaped(char) if _acts(char) else char for char in text)


def _acts(char: str) -> bool:
    return char not in _KEPT and unicodedata.category(char) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def percent(share: float, digits: int = 1) -> str:
    """``87.3 %``, the space one that does not break."""
    return f"{100 * share:.{digits}f}\u00a0%"


def points(share: float) -> str:
    """A difference of two shares in percentage points, with its sign: ``+1.2``."""
    return f"{100 * share:+.1f}".replace("-", "\u2212")


def duration(seconds: float) -> str:
    """``0.8 s``, ``42 s``, ``3 min 5 s``, ``2 h 10 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def rate(value: float) -> str:
    """A learning rate: ``0.001``, ``3e-4``, ``0``."""
    if value == 0:
        return "0"
    if 1e-3 <= value < 1e3:
        return f"{value:.3g}"
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}".replace("-", "\u2212")


def count(number: int) -> str:
    """A whole number in groups of three, or ``3.4 M`` from ten thousand on."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if number >= limit:
            scale = 1e3 if unit == "k" else limit
            return f"{number / scale:.1f}\u00a0{unit}"
    return f"{number:,}"
