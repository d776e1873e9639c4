"""Time and memory of decoding: `python benchmarks/decoding.py photographs` and `… small`.

`photographs` makes JPEG files of 12 megapixels and decodes them for 224 pixels: by plain Pillow (open,
convert, resize, one after the other), by the store, and by a second run that finds them in the store.
`small` makes PNG files of 32 by 32 pixels, lists them and decodes them. Each way is a process of its own,
and its seconds are those of the whole command, imports included.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

DISTINCT = 20
COUNTS = {"photographs": 500, "small": 100_000}
SIZES = {"photographs": 224, "small": 32}


def write_images(root: Path, kind: str, count: int) -> None:
    """``count`` files in two classes; photographs are links to ``DISTINCT`` different ones."""
    draws = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
    for number in range(count):
        path = root / ("cat", "dog")[number % 2] / f"{number}.{'jpg' if kind == 'photographs' else 'png'}"
        if kind == "small":
            Image.fromarray(draws.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
        elif number < DISTINCT:
            path.write_bytes(photograph(draws))
        else:
            first = number % DISTINCT
            os.link(root / ("cat", "dog")[first % 2] / f"{first}.jpg", path)


def photograph(draws: np.random.Generator) -> bytes:
    """A JPEG of 4000 by 3000 pixels, about 3 MB: smooth shapes with the grain of a sensor."""
    shapes = Image.fromarray(draws.integers(0, 256, (75, 100, 3), dtype=np.uint8)).resize((4000, 3000))
    grain = Image.fromarray(draws.integers(0, 256, (3000, 4000, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    Image.blend(shapes, grain, 0.08).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def plain(root: Path, size: int) -> dict[str, float]:
    """What a first script does: one image after the other, decoded whole and resized by Pillow."""
    short = round(size / 0.875)
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    rows = np.empty((len(paths), size, size, 3), dtype=np.uint8)
    started = time.perf_counter()
    for row, path in zip(rows, paths, strict=True):
        image = Image.open(path).convert("RGB")
        scale = short / min(image.size)
        image = image.resize(
            (round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC
        )
        left, top = (image.width - size) // 2, (image.height - size) // 2
        row[:] = np.asarray(image.crop((left, top, left + size, top + size)))
    return {"seconds": time.perf_counter() - started, "images": len(paths)}


def store(root: Path, size: int, shelves: Path) -> dict[str, float]:
    """What a run does."""
    from tlrecipe.data.pixels import decode_split
    from tlrecipe.data.sources import list_data
    from tlrecipe.language.spec import FolderData
    from tlrecipe.planning.facts import Preprocessing

    imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    started = time.perf_counter()
    listing = list_data(FolderData(source="folder", path=str(root), val=0.0), 0)
    listed = time.perf_counter() - started
    started = time.perf_counter()
    p = Preprocessing(size=size, crop_pct=0.875)
    pixels = decode_split(
        listing, "train", p, on_bad="error", shelves=shelves, budget=1 << 28, scratch=shelves
    )
    return {
        "seconds": time.perf_counter() - started,
        "images": len(pixels),
        "listing_seconds": listed,
        "imported_mb": imported,
    }


def measured(way: str, root: Path, size: int, shelves: Path) -> None:
    """One way, in this process; prints what it took as JSON."""
    found = plain(root, size) if way == "plain" else store(root, size, shelves)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    found["cpu_seconds"] = usage.ru_utime + usage.ru_stime
    found["peak_mb"] = usage.ru_maxrss / 1000
    print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=list(COUNTS))
    parser.add_argument("--count", type=int)
    parser.add_argument("--way", choices=["plain", "first", "again"], help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    size = SIZES[given.kind]
    if given.way:
        measured(given.way, given.root / "images", size, given.root / "shelves")
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_images(root / "images", given.kind, given.count or COUNTS[given.kind])
        time.sleep(2.1)  # files that were written just now are not trusted to stay as they are
        seconds = {}
        for way in ("plain", "first", "again"):
            command = [sys.executable, __file__, given.kind, "--way", way, "--root", str(root)]
            started = time.perf_counter()
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            seconds[way] = time.perf_counter() - started
            found = json.loads(done.stdout)
            each = 1000 * found["seconds"] / found["images"]
            listing = f", listing {found['listing_seconds']:.1f} s" if way != "plain" else ""
            imports = f" ({found['imported_mb']:,.0f} MB of it imports)" if way != "plain" else ""
            print(
                f"{way:>6}: {found['images']:,} images, {each:.2f} ms each{listing},"
                f" command {seconds[way]:.1f} s, {found['cpu_seconds']:.1f} s of processor,"
                f" peak {found['peak_mb']:,.0f} MB{imports}",
                flush=True,
            )
        first, again = (seconds["plain"] / seconds[way] for way in ("first", "again"))
        print(f"ratio of the commands: {first:.1f}, again {again:.1f}")


if __name__ == "__main__":
    main()
