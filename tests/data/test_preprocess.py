import struct
import subprocess
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import encoded, noise
from PIL import Image, ImageFile, PngImagePlugin
from timm.data import create_transform
from torchvision.transforms import v2

from tlrecipe.data.preprocess import BadImage, decode, fit, fit_batch, normalise
from tlrecipe.planning.facts import Preprocessing

P = Preprocessing(size=16, background=(10, 20, 30))


def pixels(data, p=P):
    """Decoded pixels as (H, W, 3)."""
    image = decode(data, p)
    assert image.dtype == torch.uint8
    assert image[None].is_contiguous(memory_format=torch.channels_last)
    return image.permute(1, 2, 0).numpy()


def grey(values):
    return np.repeat(np.array(values, dtype=np.uint8)[..., None], 3, axis=2)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, depth, colour, rows=b"", transparency=b""):
    """A PNG file made by hand; ``rows`` are the unpacked bytes with their filter bytes."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    transparent = chunk(b"tRNS", transparency) if transparency else b""
    data = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + transparent + data + chunk(b"IEND", b"")


# --------------------------------------------------------------------------- rules for odd images

PICTURE = noise(1, 3, 4)

UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_i10_exif_orientation_is_applied(orientation, format):
    exif = Image.Exif()
    exif[274] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(PICTURE, format, exif=exif, **options)
    assert np.array_equal(pixels(data), UPRIGHT[orientation](PICTURE))


def test_i10_a_large_jpeg_is_turned_and_reduced():
    exif = Image.Exif()
    exif[274] = 6
    picture = np.zeros((200, 320, 3), dtype=np.uint8)
    picture[:, 160:] = 200
    found = pixels(encoded(picture, "JPEG", exif=exif, quality=95))
    assert found.shape == (80, 50, 3)
    assert abs(found[:38].astype(int)).max() <= 4
    assert abs(found[42:].astype(int) - 200).max() <= 4


@pytest.mark.parametrize(
    ("side", "reduced"), [(63, 63), (64, 32), (127, 64), (128, 32), (256, 32), (1024, 128)]
)
def test_jpegs_are_reduced_to_no_less_than_twice_what_is_needed(side, reduced):
    assert pixels(encoded(noise(0, side, side), "JPEG")).shape == (reduced, reduced, 3)


def test_i07_sixteen_bit_grey_is_scaled_and_rounded():
    values = np.array([[0, 128, 129, 257, 32768, 65406, 65407, 65535]], dtype=np.uint16)
    expected = grey([[0, 0, 1, 1, 128, 254, 255, 255]])
    assert np.array_equal(pixels(encoded(values)), expected)
    assert np.array_equal(pixels(encoded(values, "TIFF")), expected)
    assert np.array_equal(pixels(encoded(values, "PPM")), expected)


def test_i07_big_endian_tiff():
    values = np.array([[0, 0x8000, 0xFFFF]], dtype=">u2")
    data = encoded(Image.frombytes("I;16B", (3, 1), values.tobytes()), "TIFF")
    assert np.array_equal(pixels(data), grey([[0, 128, 255]]))


def tiff(width, bits, photometric, strip):
    """A grey TIFF file of one row, made by hand."""
    tags = [(256, width), (257, 1), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, 1)]
    tags.append((279, len(strip)))
    strip += b"\0" * (len(strip) % 2)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    directory = struct.pack("<H", len(tags)) + entries + b"\0\0\0\0"
    return b"II*\0" + struct.pack("<I", 8 + len(strip)) + strip + directory


def test_i07_twelve_bit_grey_is_scaled_by_its_own_range():
    data = tiff(2, 12, 1, bytes([0xFF, 0xF8, 0x00]))  # 4095, 2048
    assert np.array_equal(pixels(data), grey([[255, 128]]))


def test_i07_white_may_be_zero():
    data = tiff(3, 16, 0, struct.pack("<3H", 0, 0x8000, 0xFFFF))
    assert np.array_equal(pixels(data), grey([[255, 127, 0]]))


def test_i07_one_bit():
    data = encoded(Image.fromarray(np.array([[0, 255, 255]], dtype=np.uint8)).convert("1"))
    assert np.array_equal(pixels(data), grey([[0, 255, 255]]))


def test_grey_becomes_three_equal_channels():
    assert np.array_equal(pixels(encoded(PICTURE[..., 0])), grey(PICTURE[..., 0]))


def test_palette():
    image = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 1, 2, 3])
    for format in ("PNG", "GIF", "BMP"):
        assert pixels(encoded(image, format)).tolist() == [[[255, 0, 0], [0, 255, 0], [1, 2, 3]]]


def test_cmyk_jpeg():
    inks = np.zeros((16, 16, 4), dtype=np.uint8)
    inks[:, :, 0] = 255
    found = pixels(encoded(Image.fromarray(inks, "CMYK"), "JPEG", quality=100))
    assert np.abs(found.astype(int) - [0, 255, 255]).max() <= 2


# Opaque, half and fully transparent on the background (10, 20, 30).
def test_i09_rgba_lies_on_the_background():
    rgba = np.array([[[200, 100, 0, 255], [200, 100, 0, 128], [200, 100, 0, 0]]], dtype=np.uint8)
    assert pixels(encoded(rgba)).tolist() == [[[200, 100, 0], [105, 60, 15], [10, 20, 30]]]


def test_i09_la_lies_on_the_background():
    la = np.array([[[200, 255], [200, 128], [200, 0]]], dtype=np.uint8)
    data = encoded(Image.frombytes("LA", (3, 1), la.tobytes()))
    assert pixels(data).tolist() == [[[200, 200, 200], [105, 110, 115], [10, 20, 30]]]


def test_i09_palette_with_transparency_lies_on_the_background():
    image = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8), "P")
    image.putpalette([200, 100, 0] * 3)
    data = encoded(image, transparency=bytes([255, 128, 0]))
    assert pixels(data).tolist() == [[[200, 100, 0], [105, 60, 15], [10, 20, 30]]]
    data = encoded(image, "GIF", transparency=2)
    assert pixels(data).tolist() == [[[200, 100, 0], [200, 100, 0], [10, 20, 30]]]


@pytest.mark.parametrize(
    ("depth", "colour", "rows", "transparency"),
    [
        (1, 0, b"\0\x80", b"\0\1"),
        (8, 0, b"\0\xff\0", b"\0\xff"),
        (16, 0, b"\0\xff\xff\0\0", b"\xff\xff"),
        (8, 2, b"\0\xff\xff\xff\0\0\0", b"\0\xff\0\xff\0\xff"),
    ],
    ids=["1-bit", "grey", "16-bit", "rgb"],
)
def test_i09_a_transparent_colour_lies_on_the_background(depth, colour, rows, transparency):
    assert pixels(png(2, 1, depth, colour, rows, transparency)).tolist() == [[[10, 20, 30], [0, 0, 0]]]


def test_the_first_frame_of_an_animation_counts():
    frames = [Image.fromarray(np.full((4, 4, 3), value, dtype=np.uint8)) for value in (50, 200)]
    for format in ("GIF", "PNG"):
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:])
        assert (pixels(data) == 50).all()


def test_a_phone_photo_with_an_embedded_preview_is_a_jpeg():
    frames = [Image.fromarray(np.full((8, 8, 3), value, dtype=np.uint8)) for value in (50, 200)]
    data = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert np.abs(pixels(data).astype(int) - 50).max() <= 1


# --------------------------------------------------------------------------- what is no image


def text_bomb():
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "a" * 2_000_000, zip=True)
    return encoded(PICTURE, pnginfo=info)


JPEG = encoded(noise(2, 64, 64), "JPEG")
PNG = encoded(noise(2, 64, 64))
ALLOWED = "not an allowed format (JPEG, PNG, GIF, BMP, WEBP, TIFF, PPM)"

BAD_FILES = {
    "I01-empty": (b"", "the file is empty"),
    "I01-text": (b"hello", ALLOWED),
    "I01-html-named-jpg": (b"<!DOCTYPE html><title>404</title>", ALLOWED),
    "I02-truncated-jpeg": (JPEG[: len(JPEG) // 2], "not a sound JPEG file: image file is truncated"),
    "I02-truncated-png": (PNG[: len(PNG) // 2], "not a sound PNG file: image file is truncated"),
    "I02-jpeg-header-only": (JPEG[:4], "not a sound JPEG file"),
    "I04-png-text-bomb": (text_bomb(), "not a sound PNG file: Decompressed data too large"),
    "I04-png-without-data": (b"\x89PNG\r\n\x1a\n", "not a sound PNG file"),
    "I04-broken-tiff": (b"II*\0\xff\xff\xff\xff", "not a sound TIFF file"),
    "I05-100-megapixels": (png(10_000, 10_000, 8, 2), "10000×10000 exceeds data.max_pixels (89,478,485)"),
    "I05-400-megapixels": (png(20_000, 20_000, 8, 2), "20000×20000 exceeds data.max_pixels (89,478,485)"),
    "I07-float-tiff": (encoded(np.zeros((2, 2), dtype=np.float32), "TIFF"), "pixels of type F"),
    "I07-32-bit-tiff": (encoded(np.zeros((2, 2), dtype=np.int32), "TIFF"), "32-bit integers has no declared"),
    "I09-4-bit-transparent-grey": (
        png(2, 1, 4, 0, b"\0\x8f", b"\0\x08"),
        "a transparent colour in",
    ),
    "I12-svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', ALLOWED),
    "I12-eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", ALLOWED),
    "I12-psd": (b"8BPS\0\1" + bytes(40), ALLOWED),
    "I12-fits": (b"SIMPLE  =                    T" + bytes(2880), ALLOWED),
    "I12-wave-sound": (b"RIFF\x24\0\0\0WAVEfmt ", ALLOWED),
}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize(("data", "reason"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_is_named_as_such(data, reason, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    with pytest.raises(BadImage) as caught:
        decode(data, P)
    assert reason in caught.value.reason
    assert "\n" not in caught.value.reason


@pytest.mark.parametrize(
    "error",
    [ValueError("v"), SyntaxError("s"), struct.error("e"), MemoryError(), OSError("o"), RecursionError("r"),
     Image.DecompressionBombError("d")],
    ids=lambda error: f"I04-P10-{type(error).__name__}",
)  # fmt: skip
def test_whatever_a_decoder_raises_is_a_bad_image(error, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(BadImage, match=r"not a sound BMP file: ."):
        decode(encoded(PICTURE, "BMP"), P)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@given(st.data())
@settings(max_examples=60, deadline=None)
def test_damaged_files_decode_or_are_bad_images(data):
    original = data.draw(st.sampled_from([JPEG, PNG, encoded(PICTURE, "GIF"), encoded(PICTURE, "TIFF")]))
    damaged = bytearray(original[: data.draw(st.integers(1, len(original)))])
    for place in data.draw(st.lists(st.integers(0, len(damaged) - 1), max_size=8)):
        damaged[place] = data.draw(st.integers(0, 255))
    try:
        assert decode(bytes(damaged), P).shape[0] == 3
    except BadImage as bad:
        assert bad.reason


def test_the_limit_of_pixels_is_the_recipes():
    small = Preprocessing(size=16, max_pixels=11)
    with pytest.raises(BadImage, match=r"4×3 exceeds data\.max_pixels"):
        decode(encoded(PICTURE), small)
    assert decode(encoded(PICTURE), Preprocessing(size=16, max_pixels=12)).shape == (3, 3, 4)
    # Pillow itself would refuse this many, whatever the recipe allows.
    with pytest.raises(BadImage, match="not a sound PNG file"):
        decode(png(14_000, 13_000, 8, 0), Preprocessing(size=16, max_pixels=10**9))


def test_truncated_images_stay_an_error_for_the_whole_process():
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


# --------------------------------------------------------------------------- size

GEOMETRIES = st.builds(
    Preprocessing,
    size=st.integers(8, 40),
    crop_pct=st.sampled_from([1.0, 0.95, 0.875, 0.5, 1.15]),
    interpolation=st.sampled_from(["bilinear", "bicubic", "nearest"]),
    crop_mode=st.sampled_from(["center", "squash", "border"]),
)
SIDES = st.integers(1, 70)


def batch(seed, count, height, width):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


@given(GEOMETRIES, SIDES, SIDES, st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_e09_one_image_and_a_batch_give_the_same_bits(p, height, width, seed):
    images = batch(seed, 5, height, width)
    together = fit_batch(images, p)
    assert together.shape == (5, 3, p.size, p.size)
    assert together.is_contiguous(memory_format=torch.channels_last)
    for memory in (torch.contiguous_format, torch.channels_last):
        alone = [fit(image, p) for image in images.contiguous(memory_format=memory)]
        assert torch.equal(together, torch.stack(alone))


@given(GEOMETRIES, st.integers(8, 60), st.integers(8, 60))
@settings(max_examples=60, deadline=None)
def test_fitting_is_torchvisions_resize_and_centre_crop(p, height, width):
    p = replace(p, crop_mode="center")
    height, width = min(height, 3 * width), min(width, 3 * height)
    image = batch(0, 1, height, width)
    mode = "nearest-exact" if p.interpolation == "nearest" else p.interpolation
    steps = v2.Compose(
        [v2.Resize(p.resized, v2.InterpolationMode(mode), antialias=True), v2.CenterCrop(p.size)]
    )
    assert torch.equal(fit_batch(image, p), steps(image))


SCREEN = np.asarray(Image.open(Path(__file__).parents[2] / "docs/images/report.png").convert("RGB"))[
    :420, :300
]


@pytest.mark.parametrize(
    "picture", [SCREEN, SCREEN.swapaxes(0, 1), SCREEN[:37, :100]], ids=["tall", "wide", "small"]
)
@pytest.mark.parametrize("crop_pct", [1.0, 0.95, 0.9, 1.15])
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_every_crop_mode_gives_the_pixels_of_timm(crop_mode, crop_pct, picture):
    p = Preprocessing(size=97, crop_pct=crop_pct, crop_mode=crop_mode, mean=(0.9, 0.5, 0.1))
    timms = create_transform(
        (3, p.size, p.size),
        interpolation=p.interpolation,
        crop_pct=p.crop_pct,
        crop_mode=p.crop_mode,
        mean=p.mean,
        normalize=False,
    )
    theirs = timms(Image.fromarray(picture)).numpy().astype(int)
    ours = fit(decode(encoded(picture), p), p).numpy().astype(int)
    # Pillow and torch round differently, rarely by more than one.
    assert np.abs(ours - theirs).max() <= 3
    assert np.abs(ours - theirs).mean() < 0.02


@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1)])
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_a_line_of_pixels_has_a_size_too(crop_mode, shape):
    p = Preprocessing(size=16, crop_mode=crop_mode)
    assert fit_batch(batch(0, 1, *shape), p).shape == (1, 3, 16, 16)


def test_fitting_is_close_to_pillow():
    picture = noise(5, 60, 60)
    ours = fit(decode(encoded(picture), P), P).permute(1, 2, 0).numpy().astype(int)
    theirs = np.asarray(Image.fromarray(picture).resize((16, 16), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(ours - theirs).max() <= 1


def test_an_image_of_the_right_size_is_untouched():
    images = batch(0, 3, 16, 16)
    assert torch.equal(fit_batch(images, P), images)


@pytest.mark.parametrize("shape", [(1, 200_000), (200_000, 1)])
def test_a_panorama_is_cut_before_it_is_resized(shape):
    image = batch(0, 1, *shape)
    rows, columns = (min(side, 3) for side in shape)
    top, left = round((shape[0] - rows) / 2), round((shape[1] - columns) / 2)
    middle = image[..., top : top + rows, left : left + columns]
    assert torch.equal(fit_batch(image, P), fit_batch(middle, P))


def test_an_empty_batch():
    assert fit_batch(torch.empty((0, 3, 9, 9), dtype=torch.uint8), P).shape == (0, 3, 16, 16)


# --------------------------------------------------------------------------- floats


@pytest.mark.parametrize("channels_last", [True, False])
def test_normalise_is_exact_to_the_last_bit_but_one(channels_last):
    images = batch(3, 4, 9, 9)
    found = normalise(images, P, channels_last=channels_last)
    mean, std = (np.array(values).reshape(1, 3, 1, 1) for values in (P.mean, P.std))
    exact = (images.numpy() / 255 - mean) / std
    assert found.dtype == torch.float32
    assert np.abs(found.numpy() - exact).max() < 1e-6
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert found.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_normalise_gives_the_same_bits_alone_and_in_a_batch(dtype):
    images = batch(3, 5, 13, 13)
    alone = torch.cat([normalise(image[None], P, dtype=dtype) for image in images])
    together = normalise(images, P, dtype=dtype)
    assert together.dtype == dtype
    assert torch.equal(alone, together)
    assert torch.equal(together, normalise(images, P).to(dtype))
