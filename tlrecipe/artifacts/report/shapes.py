"""Figures as plain shapes with named colours, written as SVG or drawn as PNG.

A figure knows no colours, only roles such as ``ink`` or ``s2``. In a page they become the page's own
variables, so that one drawing serves the light theme, the dark one and paper; a file of its own carries
the light and the dark palette.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from PIL import Image, ImageDraw, ImageFont

from tlrecipe.artifacts.report.text import visible

Point = tuple[float, float]

SERIES = 6
"""Roles ``s1`` … ``s6`` are the colours of series, in this order."""

LIGHT = {
    "paper": "#ffffff",
    "ink": "#16191d",
    "muted": "#58616c",
    "rule": "#d5dae0",
    "band": "#f2f4f6",
    "s1": "#0064a6",
    "s2": "#b34700",
    "s3": "#00704f",
    "s4": "#96407c",
    "s5": "#7a5b00",
    "s6": "#4a5568",
}
DARK = {
    "paper": "#14171b",
    "ink": "#eceff2",
    "muted": "#a2abb6",
    "rule": "#363d46",
    "band": "#1d2227",
    "s1": "#6cb8f2",
    "s2": "#f29a66",
    "s3": "#4fc9a0",
    "s4": "#e296cb",
    "s5": "#d8b64a",
    "s6": "#aab6c6",
}
"""Hues of Okabe and Ito (jfly.uni-koeln.de/color, 2008), which people with a colour vision deficiency can
tell apart, darkened or lightened until text in them has a contrast of 4.5 on ``paper`` and ``band``."""

TEXT_SIZE = 12.0
# A letter's mean width as a share of the text size, on the wide side.
_LETTER = 0.56
_PNG_SCALE = 2
_OVERSAMPLING = 2


@dataclass(frozen=True)
class Line:
    """A line through points, 1.5 wide unless said otherwise."""

    points: Sequence[Point]
    role: str
    width: float = 1.5
    dashed: bool = False


@dataclass(frozen=True)
class Box:
    """A filled rectangle, or the outline of one."""

    x: float
    y: float
    width: float
    height: float
    role: str
    opacity: float = 1.0
    outlined: bool = False


@dataclass(frozen=True)
class Dot:
    """A filled circle with a rim of paper, which sets it off from lines."""

    x: float
    y: float
    role: str
    radius: float = 3.5


@dataclass(frozen=True)
class Label:
    """A line of text whose baseline is at ``y``."""

    x: float
    y: float
    text: str
    role: str = "muted"
    anchor: str = "start"
    """``start``, ``middle`` or ``end``."""
    bold: bool = False
    size: float = TEXT_SIZE


@dataclass(frozen=True)
class Hint:
    """An invisible region that shows ``text`` to who points at it; drawn in pages only."""

    x: float
    y: float
    width: float
    height: float
    text: str


Shape = Line | Box | Dot | Label | Hint


@dataclass(frozen=True)
class Figure:
    """Shapes in an area of ``width`` by ``height`` pixels, with what it says in words."""

    width: float
    height: float
    shapes: Sequence[Shape]
    title: str
    description: str

    def svg(self, extra: str = "") -> str:
        """An ``<svg>`` element for a page whose stylesheet knows the roles. ``extra`` are class names."""
        classes = f"figure {extra}".strip()
        body = "".join(_element(shape) for shape in self.shapes)
        return (
            f'<svg class="{classes}" viewBox="0 0 {self.width:g} {self.height:g}"'
            f' width="{self.width:g}" height="{self.height:g}" role="img">'
            f"<title>{_text(self.title)}</title><desc>{_text(self.description)}</desc>{body}</svg>"
        )

    def svg_file(self) -> str:
        """A whole SVG file, light or dark as the viewer prefers."""
        light = "".join(f".{role}{{--c:{colour}}}" for role, colour in LIGHT.items())
        dark = "".join(f".{role}{{--c:{colour}}}" for role, colour in DARK.items())
        style = f"{FIGURE_STYLE}{light}@media(prefers-color-scheme:dark){{{dark}}}"
        paper = f'<rect class="box paper" width="{self.width:g}" height="{self.height:g}"/>'
        drawing = self.svg().replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
        return drawing.replace("</desc>", f"</desc><style>{style}</style>{paper}", 1) + "\n"

    def png(self) -> bytes:
        """A PNG file in the light palette, of twice the figure's size for sharp screens."""
        scale = _PNG_SCALE * _OVERSAMPLING
        size = (round(self.width * scale), round(self.height * scale))
        image = Image.new("RGB", size, LIGHT["paper"])
        draw = ImageDraw.Draw(image)
        for shape in self.shapes:
            _paint(draw, shape, scale)
        image = image.resize((size[0] // _OVERSAMPLING, size[1] // _OVERSAMPLING), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        image.save(out, "PNG", optimize=True)
        return out.getvalue()


FIGURE_STYLE = (
    ".figure{font:12px ui-sans-serif,system-ui,'Segoe UI',Roboto,'Noto Sans',Arial,sans-serif;"
    "font-variant-numeric:tabular-nums}"
    ".line{fill:none;stroke:var(--c);stroke-linejoin:round;stroke-linecap:round}.dashed{stroke-dasharray:2 4}"
    ".box{fill:var(--c)}.outlined{fill:none;stroke:var(--c)}"
    ".dot{fill:var(--c);stroke:var(--paper,#fff);stroke-width:1.5}"
    ".label{fill:var(--c)}.bold{font-weight:600}.hint{fill:transparent}"
)
"""What a stylesheet needs for figures, beside the roles; each role sets ``--c``."""


def text_width(text: str, size: float = TEXT_SIZE) -> float:
    """About how wide a text is; there is no font here to ask."""
    return len(text) * size * _LETTER


def shortened(text: str, width: float, size: float = TEXT_SIZE) -> str:
    """``text`` cut in its middle so that it fits ``width``: what tells long names apart is at both ends."""
    room = int(width / (size * _LETTER))
    if len(text) <= room:
        return text
    if room < 3:
        return text[: max(0, room)]
    head = room // 2
    return f"{text[:head]}…{text[len(text) - (room - 1 - head) :]}"


# --------------------------------------------------------------------------- SVG


def _element(shape: Shape) -> str:
    match shape:
        case Line():
            path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in shape.points)
            dashed = " dashed" if shape.dashed else ""
            return f'<path class="line {shape.role}{dashed}" stroke-width="{shape.width:g}" d="{path}"/>'
        case Box():
            opacity = "" if shape.opacity == 1 else f' fill-opacity="{shape.opacity:g}"'
            kind = "outlined" if shape.outlined else "box"
            return f'<rect class="{kind} {shape.role}" {_area(shape)}{opacity}/>'
        case Dot():
            place = f'cx="{shape.x:.1f}" cy="{shape.y:.1f}" r="{shape.radius:g}"'
            return f'<circle class="dot {shape.role}" {place}/>'
        case Label():
            anchor = "" if shape.anchor == "start" else f' text-anchor="{shape.anchor}"'
            size = "" if shape.size == TEXT_SIZE else f' font-size="{shape.size:g}"'
            bold = " bold" if shape.bold else ""
            place = f'x="{shape.x:.1f}" y="{shape.y:.1f}"{anchor}{size}'
            # Left to right whatever the text holds: a name in Arabic must not move to the other side.
            return (
                f'<text class="label {shape.role}{bold}" direction="ltr" {place}>{_text(shape.text)}</text>'
            )
        case Hint():
            return f'<rect class="hint" {_area(shape)}><title>{_text(shape.text)}</title></rect>'


def _area(shape: Box | Hint) -> str:
    return f'x="{shape.x:.1f}" y="{shape.y:.1f}" width="{shape.width:.1f}" height="{shape.height:.1f}"'


def _text(text: str) -> str:
    return escape(visible(text))


# --------------------------------------------------------------------------- PNG


def _paint(draw: ImageDraw.ImageDraw, shape: Shape, scale: float) -> None:
    match shape:
        case Line():
            width = max(1, round(shape.width * scale))
            for start, end in _dashes(shape.points) if shape.dashed else pairwise(shape.points):
                draw.line([_scaled(start, scale), _scaled(end, scale)], LIGHT[shape.role], width)
        case Box():
            edges = (shape.x, shape.y, shape.x + shape.width, shape.y + shape.height)
            area = [edge * scale for edge in edges]
            if shape.outlined:
                draw.rectangle(area, outline=LIGHT[shape.role], width=round(scale))
            elif shape.width > 0 and shape.height > 0:
                draw.rectangle(area, _mixed(LIGHT[shape.role], LIGHT["paper"], shape.opacity))
        case Dot():
            area = [(centre - shape.radius) * scale for centre in (shape.x, shape.y)]
            area += [(centre + shape.radius) * scale for centre in (shape.x, shape.y)]
            draw.ellipse(area, LIGHT[shape.role], LIGHT["paper"], round(scale))
        case Label():
            font = ImageFont.load_default(shape.size * scale)
            anchor = {"start": "ls", "middle": "ms", "end": "rs"}[shape.anchor]
            place = _scaled((shape.x, shape.y), scale)
            # Pillow's own font, which is there everywhere, has no minus sign.
            shown = visible(shape.text).replace("\u2212", "-").replace("\u00a0", " ")
            stroke = round(scale * 0.12) if shape.bold else 0
            draw.text(place, shown, LIGHT[shape.role], font, anchor, stroke_width=stroke)
        case Hint():
            pass


def _scaled(point: Point, scale: float) -> Point:
    return point[0] * scale, point[1] * scale


def _dashes(points: Sequence[Point], on: float = 2.0, off: float = 4.0) -> Iterator[tuple[Point, Point]]:
    for (x0, y0), (x1, y1) in pairwise(points):
        length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
        at = 0.0
        while at < length:
            end = min(at + on, length)
            yield (
                (x0 + (x1 - x0) * at / length, y0 + (y1 - y0) * at / length),
                (x0 + (x1 - x0) * end / length, y0 + (y1 - y0) * end / length),
            )
            at += on + off


def _mixed(colour: str, ground: str, share: float) -> tuple[int, int, int]:
    over, under = _rgb(colour), _rgb(ground)
    red, green, blue = (round(o * share + u * (1 - share)) for o, u in zip(over, under, strict=True))
    return red, green, blue


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
