"""No bytes make a reader of strangers' files end in anything but an answer: a short search in each run of
the suite. The long one is ``python -m tests.fuzz TARGET``, outside CI."""

from __future__ import annotations

from functools import cache

import pytest
import targets
from hypothesis import given, settings
from hypothesis import strategies as st

# Examples that reach a network or a decoder cost more than those of texts.
_EXAMPLES = {"bundle_weights": 15, "override": 40, "bundle": 60, "recipe": 60}

_known = cache(targets.seeds)


@st.composite
def damaged(draw: st.DrawFn, name: str) -> bytes:
    """A sound input with stretches of it replaced, cut out, moved or doubled; or any bytes."""
    content = bytearray(draw(st.sampled_from(_known(name))))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(content)))
        length = draw(st.integers(0, 12))
        content[at : at + length] = draw(
            st.binary(max_size=6)
            | st.sampled_from(_SHARP)
            | st.just(bytes(content[at : at + length]) * draw(st.sampled_from([2, 50])))
        )
    return bytes(content)


_SHARP = [
    *(
        b"\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"\0\0\0\0",
        b"nan",
        b"-inf",
        b"1e400",
        b"9" * 5000,
        b"\xef\xbb\xbf",
    ),
    *(b'"', b"'''", b"[[", b"{", b"}", b"\r", b"\x1b[2J", "\u202e".encode(), b"\xed\xb3\xbf", b"[" * 3000),
    *(b"true", b"null", b"../../etc/passwd", b"=", b".", b"**", b"__class__", b"0001-01-01", b"\\u0000"),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", targets.TARGETS)
def test_whatever_the_bytes_there_is_an_answer(name: str) -> None:
    @settings(max_examples=_EXAMPLES.get(name, 120))
    @given(st.one_of(damaged(name), damaged(name), st.binary(max_size=200)))
    def searched(data: bytes) -> None:
        targets.TARGETS[name](data)

    searched()


@pytest.mark.parametrize("name", targets.TARGETS)
def test_seeds_reach_behind_the_first_check(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A target whose seeds are refused at once would search nothing."""
    refusals: list[str] = []
    original = targets.TlrecipeError.__init__

    def noting(self: targets.TlrecipeError, diagnostics: object) -> None:
        original(self, diagnostics)  # type: ignore[arg-type]
        refusals.append(str(self))

    monkeypatch.setattr(targets.TlrecipeError, "__init__", noting)
    for seed in _known(name):
        targets.TARGETS[name](seed)
    expected = {"bundle": "not a sound safetensors file", "bundle_weights": "does not fit `test_resnet`"}
    assert len(refusals) < len(_known(name)) or all(expected.get(name, "\0") in text for text in refusals)
