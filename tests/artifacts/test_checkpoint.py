"""Checkpoints survive a crash at any operation, and damage is found, named and passed over."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch
from test_files import Dead, Failing

from tlrecipe import files
from tlrecipe.artifacts import checkpoint
from tlrecipe.language.diagnostics import TlrecipeError

RUN = {"recipe": "name = 'r'", "classes": ["a", "ü"]}


def tensors(step: int) -> dict[str, torch.Tensor]:
    return {
        "model/conv.weight": torch.full((2, 3, 3, 3), float(step)).to(memory_format=torch.channels_last),
        "model/count": torch.tensor(step),
        "optimizer/conv.weight/step": torch.tensor(float(step)),
        "best/half": torch.full((5,), step, dtype=torch.bfloat16),
        "empty": torch.empty(0, 3),
    }


def save(folder: Path, step: int) -> Path:
    return checkpoint.save(folder, tensors(step), {"state": {"step": step}}, RUN)


def found(folder: Path) -> checkpoint.Saved:
    saved, _ = checkpoint.newest(folder)
    assert saved is not None
    return saved


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    path = save(tmp_path, 7)
    saved = found(tmp_path)
    assert saved.path == path
    assert (saved.values, saved.run) == ({"state": {"step": 7}}, RUN)
    assert saved.tensors.keys() == tensors(7).keys()
    for name, value in tensors(7).items():
        assert torch.equal(saved.tensors[name], value)
        assert saved.tensors[name].dtype == value.dtype


def test_no_checkpoint_at_all_is_none(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) == (None, [])
    assert checkpoint.newest(tmp_path / "nowhere") == (None, [])


def test_two_verified_ones_stay(tmp_path: Path) -> None:
    for step in range(5):
        save(tmp_path, step)
    kept = sorted(path.name[:8] for path in tmp_path.iterdir())
    assert kept == ["00000004", "00000005"]
    assert found(tmp_path).values["state"]["step"] == 4


def _operations(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    counting = Failing(0, lambda: OSError())
    with monkeypatch.context() as patch:
        patch.setattr(files, "operations", counting)
        save(folder, 3)
    return counting.calls


@pytest.mark.parametrize("kind", ["C01-crash", "K01-ENOSPC", "K05-EROFS"])
def test_a_save_that_fails_at_any_operation_leaves_a_valid_checkpoint(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = tmp_path / "start"
    start.mkdir()
    save(start, 1)
    save(start, 2)
    shutil.copytree(start, tmp_path / "count")
    count = len(_operations(tmp_path / "count", monkeypatch))
    assert count >= 6
    for k in range(1, count + 1):
        folder = Path(shutil.copytree(start, tmp_path / f"{kind}-{k}"))
        code = errno.ENOSPC if "ENOSPC" in kind else errno.EROFS
        failing = Failing(k, Dead if "crash" in kind else lambda code=code: OSError(code, os.strerror(code)))
        with monkeypatch.context() as patch, pytest.raises((Dead, TlrecipeError)):
            patch.setattr(files, "operations", failing)
            save(folder, 3)
        saved, damaged = checkpoint.newest(folder)
        assert saved is not None and not damaged
        assert saved.values["state"]["step"] in (2, 3), k
        save(folder, 4)
        assert found(folder).values["state"]["step"] == 4
        assert files.leftovers(folder) == []


def test_c02_one_flipped_bit_is_found_and_the_older_one_taken(tmp_path: Path) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    whole = path.read_bytes()
    for position in range(0, len(whole) * 8, max(1, len(whole) * 8 // 200)):
        content = bytearray(whole)
        content[position // 8] ^= 1 << position % 8
        path.write_bytes(content)
        saved, damaged = checkpoint.newest(tmp_path)
        assert saved is not None and saved.values["state"]["step"] == 1
        assert len(damaged) == 1 and path.name[:20] in damaged[0]
    path.write_bytes(whole[: len(whole) // 2])
    assert found(tmp_path).values["state"]["step"] == 1


def test_c04_all_damaged_is_an_error_never_a_fresh_start(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step).write_bytes(b"")
    with pytest.raises(TlrecipeError) as caught:
        checkpoint.newest(tmp_path)
    assert caught.value.diagnostics[0].code == "TLR602"
    assert caught.value.exit_code == 6


def test_c05_leftovers_of_a_crash_are_ignored_and_removed_by_the_next_save(tmp_path: Path) -> None:
    leftover = tmp_path / ".00000009-x.safetensors.tmp-1-aa"
    leftover.write_bytes(b"half")
    save(tmp_path, 1)
    assert not leftover.exists()
    assert found(tmp_path).values["state"]["step"] == 1


@pytest.mark.parametrize(
    "about",
    ["not json", "[]", '{"format": 99, "values": {}, "run": {}}', '{"format": 1}', "[" * 10_000],
    ids=["C22-no-json", "C22-list", "C11-newer-format", "C22-no-values", "C22-nested"],
)
def test_contents_that_make_no_sense_are_refused(about: str, tmp_path: Path) -> None:
    import hashlib

    from tlrecipe.artifacts.tensors import pieces

    content = b"".join(bytes(piece) for piece in pieces(tensors(1), {"tlrecipe": about}))
    digest = hashlib.sha256(content).hexdigest()
    (tmp_path / f"00000001-{digest}.safetensors").write_bytes(content)
    with pytest.raises(TlrecipeError) as caught:
        checkpoint.newest(tmp_path)
    assert caught.value.diagnostics[0].code == "TLR602"
