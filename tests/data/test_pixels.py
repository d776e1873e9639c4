import hashlib
import os
import threading
from concurrent.futures import Future

import numpy as np
import pytest
import torch
from image_files import encoded, folder_spec, noise, pets, plant
from PIL import Image

from tlrecipe.data import parallel
from tlrecipe.data import pixels as pixels_module
from tlrecipe.data.pixels import decode_files, decode_split, duplicates
from tlrecipe.data.preprocess import BadImage, decode, fit
from tlrecipe.data.sources import list_data
from tlrecipe.language.diagnostics import TlrecipeError
from tlrecipe.language.spec import SampleData
from tlrecipe.planning.facts import Preprocessing

P = Preprocessing(size=16, crop_pct=0.8)


def listed(root):
    return list_data(folder_spec(root, val=0.0), seed=0)


def stored(root, p=P, split="train", on_bad="error", **options):
    return decode_split(listed(root), split, p, on_bad=on_bad, **options)


def mixed(sizes=((12, 12), (12, 9), (30, 20), (16, 16), (12, 12), (8, 40))):
    """Files of several sizes, small and large, by name."""
    return {
        f"{kind}/{number}.png": encoded(noise(number, *size))
        for kind in ("cat", "dog")
        for number, size in enumerate(sizes)
    }


def truth(root, pixels, p=P):
    return torch.stack([fit(decode((root / name).read_bytes(), p), p) for name in pixels.names])


# --------------------------------------------------------------------------- what is stored


def test_small_images_of_one_size_keep_it_and_serve_every_size(tmp_path):
    root = plant(tmp_path, pets(5))
    pixels = stored(root)
    assert pixels.images.shape == (10, 3, 12, 12)
    assert pixels.images.is_contiguous(memory_format=torch.channels_last)
    for p in (P, Preprocessing(size=24, interpolation="bilinear")):
        assert pixels.serves(p)
        assert torch.equal(pixels.batch(torch.arange(10), p), truth(root, pixels, p))


@pytest.mark.parametrize("threads", [1, 5])
@pytest.mark.parametrize("first", range(6))
def test_images_of_several_sizes_are_fitted_whichever_comes_first(tmp_path, threads, first):
    sizes = [(12, 12), (12, 9), (30, 20), (16, 16), (12, 12), (8, 40)]
    root = plant(tmp_path, mixed(sizes[first:] + sizes[:first]))
    pixels = stored(root, threads=threads)
    assert pixels.images.shape == (12, 3, 16, 16)
    assert torch.equal(pixels.images, truth(root, pixels))
    assert torch.equal(pixels.batch(torch.arange(12), P), truth(root, pixels))


def test_a_fitted_image_is_not_taken_for_one_of_its_own_size(tmp_path):
    # Fitted, the large image has the size of the small ones.
    root = plant(tmp_path, mixed([(16, 16), (16, 16), (40, 40)]))
    pixels = stored(root)
    assert torch.equal(pixels.batch(torch.arange(6), P), truth(root, pixels))


def test_the_largest_image_that_keeps_its_size(tmp_path):
    for side, height in ((16, 16), (17, 16)):
        root = plant(tmp_path / str(side), {name: encoded(noise(1, side, 9)) for name in pets()})
        assert stored(root).images.shape[2] == height


def test_fitted_images_serve_one_geometry_only(tmp_path):
    pixels = stored(plant(tmp_path, mixed()))
    other = Preprocessing(size=24, crop_pct=0.8)
    assert not pixels.serves(other)
    with pytest.raises(ValueError, match="16"):
        pixels.batch(torch.arange(2), other)
    assert pixels.serves(Preprocessing(size=16, crop_pct=0.8, mean=(0, 0, 0)))


def test_a_batch_is_in_the_order_of_its_indices(tmp_path):
    for files in (pets(5), mixed()):
        pixels = stored(plant(tmp_path / str(len(files)), files))
        indices = torch.tensor([3, 0, 3, 7])
        batch = pixels.batch(indices, P)
        assert batch.shape == (4, 3, 16, 16)
        assert batch.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(batch, pixels.batch(torch.arange(len(pixels)), P)[indices])


def test_labels_names_and_fingerprints_go_with_the_images(tmp_path):
    root = plant(tmp_path, pets(5))
    pixels = stored(root)
    assert pixels.names == tuple(item.name for item in listed(root).splits["train"])
    assert pixels.labels.tolist() == [0] * 5 + [1] * 5
    assert pixels.labels.dtype == torch.int64
    for name, fingerprint in zip(pixels.names, pixels.fingerprints, strict=True):
        assert fingerprint.tobytes() == hashlib.sha256((root / name).read_bytes()).digest()


def test_the_sample_is_decoded_whole():
    listing = list_data(SampleData(source="sample"), seed=0)
    pixels = decode_split(listing, "test", P, on_bad="error")
    # The sample's 32×32 images are larger than 16.
    assert pixels.images.shape == (1000, 3, 16, 16)
    pixels = decode_split(listing, "val", Preprocessing(size=32), on_bad="error")
    assert pixels.images.shape == (100, 3, 32, 32)
    assert pixels.fitted is None


def test_progress_ends_at_the_number_of_images(tmp_path):
    calls = []
    stored(plant(tmp_path, pets(5)), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 10) for done in range(1, 11)]


# --------------------------------------------------------------------------- digest


def test_the_digest_does_not_depend_on_how_the_work_was_done(tmp_path):
    root = plant(tmp_path / "pets", mixed())
    (tmp_path / "scratch").mkdir()
    results = [
        stored(root, threads=1),
        stored(root, threads=7),
        stored(root, budget=0, scratch=tmp_path / "scratch"),
    ]
    assert len({pixels.digest for pixels in results}) == 1
    assert all(torch.equal(pixels.images, results[0].images) for pixels in results)


def test_the_digest_tells_pixels_labels_and_form_apart(tmp_path):
    same = encoded(noise(1))
    contents = {
        "original": dict.fromkeys(pets(2), same),
        "pixel": dict.fromkeys(pets(2), same) | {"dog/1.png": encoded(noise(2))},
        "label": {"cat/0.png": same, "cat/1.png": same, "cat/2.png": same, "dog/0.png": same},
    }
    digests = {stored(plant(tmp_path / name, files)).digest for name, files in contents.items()}
    forms = [Preprocessing(size=8, interpolation=mode) for mode in ("bilinear", "nearest")]
    digests |= {stored(tmp_path / "original", p).digest for p in forms}
    assert len(digests) == 5


def test_the_digest_tells_forms_of_the_same_bytes_apart(tmp_path):
    def plain(*shapes):
        shapes = [(height, width, 3) for height, width in shapes]
        return {
            f"{kind}/{n}.png": encoded(np.full(shape, 7, np.uint8))
            for kind in ("cat", "dog")
            for n, shape in enumerate(shapes)
        }

    tall, wide = (plant(tmp_path / name, plain(*shape)) for name, shape in (("a", [(6, 4)]), ("b", [(4, 6)])))
    assert stored(tall).digest != stored(wide).digest
    several = plant(tmp_path / "c", plain((6, 4), (4, 6)))
    assert stored(several).digest != stored(several, Preprocessing(size=16, crop_pct=0.9)).digest


def test_the_digest_does_not_depend_on_the_size_that_is_asked_for_later(tmp_path):
    root = plant(tmp_path, pets(3))
    assert stored(root, P).digest == stored(root, Preprocessing(size=99)).digest


def test_i03_a_changed_file_shows_in_its_fingerprint_alone(tmp_path):
    root = plant(tmp_path, pets(3))
    before = stored(root)
    path = root / before.names[2]
    path.write_bytes(path.read_bytes() + b"\0\0")
    after = stored(root)
    changed = (before.fingerprints != after.fingerprints).any(axis=1)
    assert np.flatnonzero(changed).tolist() == [2]
    assert before.digest == after.digest


# --------------------------------------------------------------------------- memory and disk


def test_large_stores_lie_in_a_file_without_a_name(tmp_path):
    root = plant(tmp_path / "pets", mixed())
    pixels = stored(root, budget=100, scratch=tmp_path / "cache" / "new")
    assert torch.equal(pixels.images, truth(root, pixels))
    assert not any((tmp_path / "cache" / "new").iterdir())


@pytest.mark.parametrize("trouble", ["no-folder", "no-space"])
def test_k01_a_disk_that_cannot_hold_the_store(tmp_path, trouble, monkeypatch):
    root = plant(tmp_path / "pets", pets())
    scratch = tmp_path / "scratch"
    if trouble == "no-folder":
        scratch.write_bytes(b"a file")
    else:

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(TlrecipeError) as caught:
        stored(root, budget=0, scratch=scratch)
    assert caught.value.exit_code == 9
    assert str(scratch) in caught.value.diagnostics[0].message
    assert not scratch.is_dir() or not any(scratch.iterdir())


# --------------------------------------------------------------------------- bad files


def test_i01_all_bad_files_are_named_at_once(tmp_path):
    bad = {"cat/1.png": b"", "dog/0.png": b"<html>", "dog/3.png": encoded(noise(1))[:60]}
    root = plant(tmp_path, dict.fromkeys(pets()) | bad)
    with pytest.raises(TlrecipeError) as caught:
        stored(root)
    problems = caught.value.diagnostics
    assert caught.value.exit_code == 4
    assert [problem.code for problem in problems] == ["TLR404"] * 3
    assert [problem.message.split(":")[0] for problem in problems] == [f"`{name}`" for name in bad]
    assert {problem.path for problem in problems} == {("data", "path")}
    assert "on_bad" in problems[0].help


def test_i01_more_than_twenty_bad_files_are_counted(tmp_path):
    root = plant(tmp_path, dict.fromkeys(pets(15), b""))
    with pytest.raises(TlrecipeError) as caught:
        stored(root)
    assert len(caught.value.diagnostics) == 21
    assert caught.value.diagnostics[-1].message == "and 10 more"


def test_i01_skipped_files_are_left_out_and_listed_and_replaced_by_nothing(tmp_path):
    root = plant(tmp_path, dict.fromkeys(pets(4)) | {"cat/0.png": b"", "dog/2.png": b"text"})
    pixels = stored(root, on_bad="skip")
    assert [name for name, _ in pixels.bad] == ["cat/0.png", "dog/2.png"]
    assert pixels.bad[0][1] == "the file is empty"
    assert pixels.names == tuple(f"cat/{n}.png" for n in (1, 2, 3)) + tuple(f"dog/{n}.png" for n in (0, 1, 3))
    assert pixels.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal(pixels.batch(torch.arange(6), P), truth(root, pixels))
    assert len(pixels.fingerprints) == len(pixels) == 6


def test_skipping_must_leave_an_image_of_every_class(tmp_path):
    root = plant(tmp_path, dict.fromkeys(pets(2)) | {"dog/0.png": b"", "dog/1.png": b""})
    with pytest.raises(TlrecipeError) as caught:
        stored(root, on_bad="skip")
    ((problem,),) = [caught.value.diagnostics]
    assert problem.code == "TLR402"
    assert "`dog`" in problem.message


def test_d10_a_file_that_disappears_after_listing_is_named(tmp_path):
    root = plant(tmp_path, pets())
    listing = listed(root)
    (root / "dog/2.png").unlink()
    with pytest.raises(TlrecipeError) as caught:
        decode_split(listing, "train", P, on_bad="error")
    (problem,) = caught.value.diagnostics
    assert problem.message == "`dog/2.png`: cannot be read: No such file or directory"
    assert decode_split(listing, "train", P, on_bad="skip").bad[0][0] == "dog/2.png"


def test_d07_identical_files_in_two_splits_are_found(tmp_path):
    files = pets(3, "train/") + pets(2, "test/")
    root = plant(tmp_path, files)
    os.link(root / "train/cat/1.png", root / "test/dog/same.png")
    os.link(root / "train/cat/1.png", root / "train/cat/2-again.png")
    (root / "test/cat/copy.png").write_bytes((root / "train/dog/0.png").read_bytes())
    pairs = duplicates(stored(root), stored(root, split="test"))
    assert pairs == [("train/dog/0.png", "test/cat/copy.png"), ("train/cat/1.png", "test/dog/same.png")]


# --------------------------------------------------------------------------- single files


@pytest.mark.parametrize("threads", [1, 4])
def test_e01_every_path_has_one_result_in_the_order_given(tmp_path, threads):
    root = plant(tmp_path, {**mixed(), "cat/bad.png": b"", "cat/text.jpg": b"no"})
    os.mkfifo(root / "pipe.png")
    paths = [root / name for name in ("cat/bad.png", "dog/2.png", "gone.png", "cat", "pipe.png", "cat/0.png")]
    paths += [root / f"cat/{number % 6}.png" for number in range(60)]
    results = list(decode_files(paths, P, threads=threads))
    assert [path for path, _ in results] == paths
    reasons = [result.reason if isinstance(result, BadImage) else None for _, result in results]
    assert reasons[:6] == [
        "the file is empty",
        None,
        "cannot be read: No such file or directory",
        "cannot be read: Is a directory",
        "cannot be read: not a regular file",
        None,
    ]
    for path, result in results[6:]:
        assert torch.equal(result, fit(decode(path.read_bytes(), P), P))


def every_rule():
    """An image file for each rule of decoding, by name."""
    rgb = noise(3, 14, 10)
    rgba = np.concatenate([rgb, noise(4, 14, 10)[..., :1]], axis=2)
    deep = np.arange(140, dtype=np.uint16).reshape(14, 10) * 468
    palette = Image.fromarray(rgb).quantize(9)
    cmyk = Image.fromarray(rgb).convert("CMYK")
    frames = [Image.fromarray(noise(seed, 14, 10)) for seed in (7, 8)]
    files = {
        "1-bit.png": encoded(Image.fromarray(rgb).convert("1")),
        "grey.png": encoded(rgb[..., 0]),
        "grey.jpg": encoded(rgb[..., 0], "JPEG"),
        "grey16.png": encoded(deep),
        "grey16.tif": encoded(deep, "TIFF"),
        "grey16-big-endian.tif": encoded(
            Image.frombytes("I;16B", (10, 14), deep.astype(">u2").tobytes()), "TIFF"
        ),
        "grey16.ppm": encoded(deep, "PPM"),
        "rgba.png": encoded(rgba),
        "la.png": encoded(Image.fromarray(rgba).convert("LA")),
        "palette.png": encoded(palette),
        "palette.bmp": encoded(palette, "BMP"),
        "palette-transparent.png": encoded(palette, transparency=bytes([0, 128, 255] * 3)),
        "palette-transparent.gif": encoded(palette, "GIF", transparency=2),
        "transparent-colour.png": encoded(rgb, transparency=tuple(rgb[0, 0].tolist())),
        "transparent-grey16.png": encoded(deep, transparency=468),
        "animation.gif": encoded(palette, "GIF", save_all=True, append_images=[Image.fromarray(rgb[::-1])]),
        "animation.png": encoded(frames[0], save_all=True, append_images=frames[1:]),
        "with-a-preview.jpg": encoded(frames[0], "MPO", save_all=True, append_images=frames[1:]),
        "cmyk.jpg": encoded(cmyk, "JPEG"),
        "cmyk.tif": encoded(cmyk, "TIFF"),
        "ycbcr.tif": encoded(Image.fromarray(rgb).convert("YCbCr"), "TIFF"),
        "large.jpg": encoded(noise(5, 300, 200), "JPEG"),
        "panorama.png": encoded(noise(6, 8, 90)),
        "lossless.webp": encoded(rgba, "WEBP", lossless=True),
        "colours.ppm": encoded(rgb, "PPM"),
        "colours.bmp": encoded(rgb, "BMP"),
    }
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[274] = orientation
        files[f"turned-{orientation}.png"] = encoded(rgb, exif=exif)
        files[f"turned-{orientation}.jpg"] = encoded(rgb, "JPEG", exif=exif)
        files[f"turned-{orientation}-large.jpg"] = encoded(noise(5, 300, 200), "JPEG", exif=exif)
    return files


GEOMETRIES = [
    Preprocessing(16, 0.8, interpolation, background=(10, 200, 30))
    for interpolation in ("bilinear", "bicubic", "nearest")
] + [Preprocessing(16, 0.9, crop_mode=mode, background=(10, 200, 30)) for mode in ("squash", "border")]


@pytest.mark.case("E09", "I07", "I09", "I10")
@pytest.mark.parametrize("p", GEOMETRIES, ids=lambda p: f"{p.crop_mode}-{p.interpolation}")
def test_training_and_prediction_see_the_same_pixels_by_every_rule(tmp_path, p):
    files = every_rule()
    root = plant(
        tmp_path / "pets", {f"{kind}/{name}": data for kind in ("cat", "dog") for name, data in files.items()}
    )
    decoded = stored(root, p, shelves=tmp_path / "shelves")
    found_again = stored(root, p, shelves=tmp_path / "shelves")
    assert len(decoded) == 2 * len(files)
    predicted = [image for _, image in decode_files([root / name for name in decoded.names], p)]
    everything = torch.arange(len(decoded))
    for trained in (decoded.batch(everything, p), found_again.batch(everything, p)):
        for name, one, other in zip(decoded.names, trained, predicted, strict=True):
            assert torch.equal(one, other), name


@pytest.mark.case("E09", "I07", "I09")
def test_training_and_prediction_refuse_the_same_files_for_the_same_reasons(tmp_path):
    whole = noise(1)
    odd = {
        "float.tif": encoded(np.zeros((2, 2), dtype=np.float32), "TIFF"),
        "32-bit.tif": encoded(np.zeros((2, 2), dtype=np.int32), "TIFF"),
        "cut.png": encoded(whole)[:60],
        "text.png": b"hello",
    }
    root = plant(tmp_path, dict.fromkeys(pets(2)) | {f"cat/{name}": data for name, data in odd.items()})
    trained = dict(stored(root, on_bad="skip").bad)
    predicted = {
        f"cat/{path.name}": bad.reason for path, bad in decode_files([root / name for name in trained], P)
    }
    assert len(trained) == len(odd)
    assert trained == predicted


def test_prediction_runs_ahead_by_a_bounded_number_of_files(tmp_path, monkeypatch):
    read = []
    lock = threading.Lock()

    def count(path):
        with lock:
            read.append(path)
        return encoded(noise(1))

    monkeypatch.setattr("tlrecipe.data.pixels.read_bytes", count)
    results = decode_files([tmp_path / str(number) for number in range(500)], P, threads=2)
    next(results)
    results.close()
    assert len(read) < 20


@pytest.mark.case("I14")
@pytest.mark.parametrize("how", ["training", "prediction"])
def test_i14_a_decoder_that_hangs_is_given_up_with_the_file_in_flight(tmp_path, how, monkeypatch):
    root = plant(tmp_path, pets(6))
    held = threading.Event()
    original = pixels_module.decode_with_facts

    def decode(data, p):
        if data == (root / "dog/3.png").read_bytes():
            held.wait()
        return original(data, p)

    monkeypatch.setattr(pixels_module, "decode_with_facts", decode)
    monkeypatch.setattr(parallel, "TIMEOUT", 1)
    try:
        with pytest.raises(TlrecipeError) as caught:
            if how == "training":
                stored(root, threads=2)
            else:
                list(decode_files(sorted(root.rglob("*.png")), P, threads=2))
    finally:
        held.set()
    (problem,) = caught.value.diagnostics
    assert (problem.code, caught.value.exit_code) == ("TLR1001", 10)
    assert "dog/3.png` is being read or decoded for more than 1 seconds" in problem.message


@pytest.mark.case("P08", "I14")
def test_the_time_in_which_a_process_is_stopped_does_not_count(tmp_path, monkeypatch):
    root = plant(tmp_path, pets(2))
    waits = []
    original = parallel.wait

    def slow(futures, timeout):
        waits.append(timeout)
        return original(futures, timeout) if len(waits) > 1 else original([Future()], 0)

    monkeypatch.setattr(parallel, "wait", slow)
    monkeypatch.setattr(parallel, "TIMEOUT", 2)
    assert len(list(decode_files([root / "cat/0.png"], P))) == 1
    assert waits == [1, 1]


def test_no_paths_give_no_results():
    assert list(decode_files([], P)) == []
