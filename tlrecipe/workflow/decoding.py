"""The decoded images of a data set, split by split, when they are asked for."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal

from tlrecipe import files
from tlrecipe.data.listing import Listing
from tlrecipe.data.pixels import Pixels, decode_split
from tlrecipe.language.diagnostics import Diagnostic
from tlrecipe.planning.facts import Preprocessing

if TYPE_CHECKING:
    from tlrecipe.training.engine import Emit


class DecodedData:
    """Decodes each split once for each geometry that phases in a row have in common.

    Attributes:
        seconds: spent on decoding so far.
    """

    def __init__(self, listing: Listing, on_bad: Literal["error", "skip"], emit: Emit):
        self.seconds = 0.0
        self._listing, self._on_bad, self._emit = listing, on_bad, emit
        self._kept: dict[str, Pixels] = {}

    def __call__(self, split: str, preprocessing: Preprocessing) -> Pixels | None:
        """The images of a split for these sizes, or None where the data has no such split.

        Raises TLR402, TLR404 and TLR901, as :func:`tlrecipe.data.pixels.decode_split` does.
        """
        if split not in self._listing.splits:
            return None
        kept = self._kept.get(split)
        if kept is not None and kept.serves(preprocessing):
            return kept
        started = time.perf_counter()
        # Let go of the old size before the new one takes memory.
        kept = self._kept.pop(split, None)
        del kept
        decoded = decode_split(
            self._listing,
            split,
            preprocessing,
            on_bad=self._on_bad,
            progress=lambda done, total: self._emit("data", split=split, done=done, total=total),
            scratch=files.cache_dir() / "pixels",
            shelves=files.cache_dir() / "pixels",
        )
        self._kept[split] = decoded
        self.seconds += time.perf_counter() - started
        return decoded


def left_out(pixels: Pixels, listing: Listing) -> list[Diagnostic]:
    """A warning for each file that the recipe allows to be skipped."""
    return [
        Diagnostic("TLR404", f"`{name}` is left out: {reason}", listing.place, severity="warning")
        for name, reason in pixels.bad
    ]
