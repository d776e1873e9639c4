"""Backbones: an architecture of timm or torchvision, or of an earlier model, under a new head.

:func:`describe` answers the compiler's questions from an empty network; :func:`build` makes the same
network with real weights; :func:`rebuild` makes it again from what a bundle remembers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.overrides import TorchFunctionMode

from tlrecipe.language.diagnostics import TlrecipeError
from tlrecipe.language.spec import BackboneSpec, BundleBackbone, HeadSpec, LibraryBackbone
from tlrecipe.models import adapters, weights
from tlrecipe.models.anatomy import module_facts, param_facts
from tlrecipe.models.architecture import Architecture
from tlrecipe.models.arguments import PLACE, check_arguments, refused
from tlrecipe.models.bundle_record import BUNDLE, Ancestor, backbone_bundle, bad_bundle
from tlrecipe.models.bundle_source import BundleArchitecture
from tlrecipe.models.table import weights_kind
from tlrecipe.planning.facts import ParamTable

MOST_MODULES = 20_000
"""Several times what the deepest networks of both libraries have; a constructor of more is stopped."""


@dataclass(frozen=True)
class Backbone:
    """A network with its weights and everything a bundle has to say about it."""

    model: nn.Module
    """On the CPU, in float32 and eval mode."""
    table: ParamTable
    heads: tuple[str, ...]
    """Dotted names of the layers that give the class scores: distilled networks have two."""
    origin: str
    """Where the weights came from, for people and results."""
    weights_sha256: str | None
    """Digest of the weights file; None for random weights."""
    license: str | None
    """Licence of the weights, where known."""
    config: dict[str, Any]
    """``config.json`` of timm's hub layout, with what :func:`rebuild` needs under ``tlrecipe``."""
    ancestors: tuple[Ancestor, ...] = ()
    """Models of ours that the weights come from, the nearest first."""

    @property
    def identity(self) -> str:
        """What the network computes beside its weights, as one text: part of stored features' addresses."""
        said = self.config["tlrecipe"]
        return json.dumps({key: said[key] for key in ("source", "name", "args", "size")}, sort_keys=True)

    def provenance(self) -> dict[str, Any]:
        """Where the weights come from and under which licence, as plain values for ``result.json``."""
        return {
            "architecture": self.config["tlrecipe"]["name"],
            "origin": self.origin,
            "sha256": self.weights_sha256,
            "license": self.license,
            "ancestors": [item.model_dump(mode="json") for item in self.ancestors],
        }

    @property
    def head(self) -> str:
        """Dotted name of the first of :attr:`heads`."""
        return self.heads[0]


def available() -> Iterator[tuple[str, str]]:
    """Every backbone as (name, source), in the libraries' own order."""
    for source in ("timm", "torchvision"):
        for name in _library(source).names():
            yield name, source


def describe(spec: BackboneSpec, head: HeadSpec, classes: int, size: int | None = None) -> ParamTable:
    """The parameter table of ``spec`` under a new head, from an empty network: no weights, no network access.

    ``size`` is the image size in pixels that the network is to be built for; where it differs from the
    weights' own, a forward pass without data proves it, and ``fixed_size`` of the table says if it fails.
    Raises TLR102, TLR112, TLR113, TLR114, TLR501 for published weights that do not exist, TLR503 where
    ``args`` make another network than theirs, TLR504, and for adapters TLR104 and TLR115.
    """
    return _outlined(_resolve(spec), spec, head, classes, size)[1]


def build(spec: BackboneSpec, head: HeadSpec, classes: int, seed: int, size: int | None = None) -> Backbone:
    """The network of :func:`describe` with real weights.

    All of the weights but the head come from where ``spec.weights`` says. The head is always new, even
    where the file has one of the same shape: it is a function of the architecture, the classes, the
    image size it is built for, and ``seed``. With ``"none"`` all weights are. An adapter is a function of
    its layer's name and shape and of ``seed``. The global random state is left as it was. Raises what
    :func:`describe` raises, and TLR501, TLR502, TLR503, TLR901.
    """
    architecture = _resolve(spec)
    _, table = _outlined(architecture, spec, head, classes, size)
    if table.fixed_size:
        raise TlrecipeError.of(
            "TLR113",
            f"`{architecture.name}` cannot be built for images of {size} pixels",
            path=("data", "size"),
            help=f"its own size is {architecture.preprocessing.size}",
        )
    size = _other_size(architecture, size)
    kind = _kind(spec)
    read: weights.Weights | None = None
    if kind != "none":
        path = spec.weights if kind == "path" and isinstance(spec, LibraryBackbone) else None
        file = architecture.published() if path is None else weights.from_path(path)
        read = weights.read(file, spec.sha256)
        if isinstance(architecture, BundleArchitecture):
            # Only a network that is no larger than its file is given memory.
            own = _own_outline(architecture)
            weights.check_fit(own, read.state, architecture.heads(own), architecture.name)
    with _seeded(seed):
        if read is None:
            model = architecture.construct(classes, head.dropout, size)
        else:
            model = architecture.loaded(read.state, classes, head.dropout, size)
    heads = architecture.heads(model)
    if head.init == "zeros":
        for name in heads:
            for parameter in model.get_submodule(name).parameters():
                nn.init.zeros_(parameter)
    if spec.adapter is not None:
        adapters.attach(model, table.adapted, spec.adapter, seed)
    config = architecture.hub_config(model, classes, size)
    config["tlrecipe"] = {
        "source": architecture.library,
        "name": architecture.name,
        "weights": architecture.settings,
        "args": dict(architecture.args),
        "head": head.model_dump(),
        "size": architecture.library_size(size),
    }
    return Backbone(
        model=model.float().eval(),
        table=table,
        heads=heads,
        origin=f"random, seed {seed}" if read is None else read.origin,
        weights_sha256=None if read is None else read.sha256,
        license=table.license,
        config=config,
        ancestors=architecture.ancestors if isinstance(architecture, BundleArchitecture) else (),
    )


def outline(spec: BackboneSpec, head: HeadSpec, classes: int, size: int | None = None) -> nn.Module:
    """The network of :func:`build` without its weights: on the meta device, in eval mode.

    Raises what :func:`describe` raises.
    """
    return _outlined(_resolve(spec), spec, head, classes, size)[0].to("meta").eval()


def rebuild(config: Mapping[str, Any], classes: int) -> nn.Module:
    """The network of a :attr:`Backbone.config`, in eval mode on the CPU, its weights yet to be loaded.

    Raises TLR504 if the config does not say what to build.
    """
    architecture, head, size = _recorded(config)
    with _seeded(0):
        return architecture.construct(classes, head.dropout, size).eval()


def rebuilt_outline(config: Mapping[str, Any], classes: int) -> nn.Module:
    """The network of :func:`rebuild` on the meta device: what a stranger's record asks for, before any
    memory is given to it.

    Raises what :func:`rebuild` raises, TLR113, and TLR114 for arguments that no recipe could give.
    """
    architecture, head, size = _recorded(config)
    if architecture.args:
        _check_arguments(architecture, "none", classes, size)
    return _empty(architecture.name, lambda: architecture.construct(classes, head.dropout, size))


def _recorded(config: Mapping[str, Any]) -> tuple[Architecture, HeadSpec, int | None]:
    try:
        said = config["tlrecipe"]
        if said["source"] not in ("timm", "torchvision"):
            raise ValueError(f"no library is called {said['source']!r}")
        args = dict(said.get("args", {}))
        architecture: Architecture = _library(said["source"]).resolve(said["name"], said["weights"], args)
        return architecture, HeadSpec(**said["head"]), None if said["size"] is None else int(said["size"])
    except (KeyError, TypeError, ValueError) as error:
        raise TlrecipeError.of("TLR504", f"the config does not say what to build: {error}") from None


# --------------------------------------------------------------------------- from spec to facts


def _library(source: str) -> Any:
    # Each library takes seconds to import: only the one that was asked for.
    if source == "timm":
        from tlrecipe.models import timm_source

        return timm_source
    from tlrecipe.models import torchvision_source

    return torchvision_source


def _kind(spec: BackboneSpec) -> str:
    return weights_kind(spec.weights) if isinstance(spec, LibraryBackbone) else "bundle"


def _resolve(spec: BackboneSpec) -> Architecture:
    if isinstance(spec, BundleBackbone):
        return _resolve_bundle(spec)
    kind = weights_kind(spec.weights)
    if kind == "none" and spec.sha256 is not None:
        raise TlrecipeError.of(
            "TLR102",
            'weights = "none" has no file whose SHA-256 could be checked',
            path=("backbone", "sha256"),
            help="remove `sha256`, or name the weights",
        )
    architecture: Architecture = _library(spec.source).resolve(spec.name, kind, spec.args)
    return architecture


def _resolve_bundle(spec: BundleBackbone) -> BundleArchitecture:
    folder, bundle = backbone_bundle(spec.path, spec.sha256)
    said = bundle.backbone
    try:
        network = _library(said.source).resolve(said.name, said.weights, {**said.args, **spec.args})
    except TlrecipeError as error:
        raise _names_no_network(folder, error) from error
    return BundleArchitecture(folder, bundle, network)


def _own_outline(architecture: BundleArchitecture) -> nn.Module:
    """The network that a bundle says it is, on the meta device. Raises TLR504 where that is none."""
    said = architecture.bundle
    try:
        return rebuilt_outline({"tlrecipe": said.backbone.model_dump()}, len(said.classes))
    except TlrecipeError as error:
        raise _names_no_network(architecture.folder, error) from error


def _names_no_network(folder: Path, error: TlrecipeError) -> TlrecipeError:
    reason = f"names no network: {error.diagnostics[0].message}"
    (unusable,) = bad_bundle(folder / BUNDLE, reason).diagnostics
    return TlrecipeError([replace(unusable, path=("backbone", "path"))])


def _other_size(architecture: Architecture, size: int | None) -> int | None:
    return None if size == architecture.preprocessing.size else size


def _outlined(
    architecture: Architecture, spec: BackboneSpec, head: HeadSpec, classes: int, size: int | None
) -> tuple[nn.Module, ParamTable]:
    """The empty network, and its parameter table."""
    kind = _kind(spec)
    size = _other_size(architecture, size)
    if isinstance(architecture, BundleArchitecture) and architecture.bundle.backbone.args:
        _own_outline(architecture)
    if spec.args:
        _check_arguments(architecture, kind, classes, size)
    model = None if size is None else _proved(architecture, classes, head.dropout, size, kind != "none")
    fixed = size is not None and model is None
    if model is None:
        model = _empty(architecture.name, lambda: architecture.construct(classes, head.dropout, None))
    heads, layers = architecture.heads(model), architecture.layers(model)
    table = ParamTable(
        params=param_facts(model, heads, *layers),
        modules=module_facts(model),
        preprocessing=architecture.preprocessing,
        pretrained=kind != "none",
        fixed_size=fixed,
        built_size=(architecture.preprocessing.size if size is None or fixed else size)
        if architecture.sized
        else None,
        license=None if kind in ("none", "path") else architecture.license,
        architecture=architecture.name,
    )
    if spec.adapter is None:
        return model, table
    model = model.to("meta")
    pixels = size if size is not None and not fixed else architecture.preprocessing.size
    matches = adapters.matches(model, table, spec.adapter, pixels)
    table = replace(table, adapters=matches)
    adapters.attach(model, table.adapted, spec.adapter, seed=0)
    params, modules = param_facts(model, heads, *layers), module_facts(model)
    return model, replace(table, params=params, modules=modules)


def _check_arguments(architecture: Architecture, kind: str, classes: int, size: int | None) -> None:
    """Raise TLR114 for arguments that the network does not take, or that make it unusable, and TLR503
    for those that make another network than that of the weights."""
    given, name = architecture.args, architecture.name
    plain = architecture.with_args({})
    usual = _empty(name, lambda: plain.construct(classes, 0.0, None))
    check_arguments(given, type(usual), architecture.reserved, name)
    try:
        changed = _empty(name, lambda: architecture.construct(classes, 0.0, None))
        architecture.heads(changed)
    except TlrecipeError as error:
        raise refused(name, given, error.diagnostics[0].message) from error
    pixels = architecture.preprocessing.size
    reason = _unusable(changed, classes, pixels)
    # Some networks cannot run without values; then nothing is known.
    if reason is not None and _unusable(usual, classes, pixels) is None:
        raise refused(name, given, reason)
    if kind not in ("none", "path"):
        with torch.device("meta"):
            architecture.loaded(usual.to("meta").state_dict(), classes, 0.0, size)


def _unusable(model: nn.Module, classes: int, size: int) -> str | None:
    """Why an empty network does not give one score per class and image, or None if it does."""
    try:
        scores = model.to("meta").eval()(torch.empty(2, 3, size, size, device="meta"))
    except Exception as error:  # a library's network fails with whatever its arithmetic happens to raise
        return f"{type(error).__name__}: {error}"
    shape = tuple(getattr(scores, "shape", ()))
    return None if shape == (2, classes) else f"it gives {shape or 'several values'}, not a score per class"


def _proved(
    architecture: Architecture, classes: int, dropout: float, size: int, pretrained: bool
) -> nn.Module | None:
    """An empty network for images of ``size``, or None if it or its weights take no such size."""
    try:
        model = _empty("", lambda: architecture.construct(classes, dropout, size)).to("meta").eval()
        model(torch.empty(1, 3, size, size, device="meta"))
        if pretrained and architecture.sized:
            own = _empty("", lambda: architecture.construct(classes, dropout, None)).to("meta")
            with torch.device("meta"):
                architecture.loaded(own.state_dict(), classes, dropout, size)
    except Exception:  # libraries refuse a size with whatever their arithmetic happens to raise
        return None
    return model


def _empty(name: str, construct: Callable[[], nn.Module]) -> nn.Module:
    """A network without memory behind its weights, as far as its constructor allows.

    Most are built on the meta device. Constructors that compute with tensors (all regnets of
    torchvision) fail there and get real tensors for all but the weights of their layers; what fails
    even so is built in full.
    """
    places: tuple[Callable[[], AbstractContextManager[Any]], ...]
    places = (lambda: torch.device("meta"), _WeightsOnMeta, nullcontext)
    failure: Exception | None = None
    with _seeded(0), _counted(name):
        for place in places:
            try:
                with place():
                    return construct()
            except TlrecipeError:
                raise
            except Exception as error:
                failure = error
    raise TlrecipeError.of(
        "TLR113",
        f"`{name}` cannot be built: {failure}",
        path=("backbone", "name"),
        help="choose another architecture",
    )


@contextmanager
def _counted(name: str) -> Iterator[None]:
    """Ends a constructor that makes layers without end, as arguments may ask for."""
    count = 0

    def one_more(*_: object) -> None:
        nonlocal count
        count += 1
        if count > MOST_MODULES:
            raise TlrecipeError.of(
                "TLR114",
                f"`{name}` with these arguments has more than {MOST_MODULES:,} modules",
                path=PLACE,
            )

    handle = register_module_module_registration_hook(one_more)
    try:
        yield
    finally:
        handle.remove()


class _WeightsOnMeta(TorchFunctionMode):
    """Put what layers allocate for their weights on the meta device, and leave arithmetic real."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """A random state of our own, the same whatever was drawn before; the global one is restored."""
    digest = hashlib.sha256(f"{seed}/head".encode()).digest()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        yield
