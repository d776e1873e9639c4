"""Where the frozen part of a network ends, and the network split there.

The network is traced with ``torch.fx`` at module granularity: modules that are frozen (or trained) as a
whole stay opaque, so their Python may do what it likes; only modules that hold both are looked into.
A node of the trace is *pure* if it depends on pure nodes only, trains nothing, keeps no statistics and
draws no random numbers. The pure nodes are the prefix; what the rest reads from them are the features.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_flatten, tree_unflatten

from tlrecipe.models.adapters import Adapted
from tlrecipe.models.anatomy import draw_rate

# Functions of torch that draw random numbers when they are asked to train.
_RANDOM_FUNCTIONS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, torch.dropout)

# Float32 sums in another order differ by less than this share of the largest value.
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Split:
    """A network as ``suffix(prefix(images)) == model(images)``.

    Both halves share their modules with the network, so an optimizer of the network's parameters trains
    the suffix and train or eval mode is the network's own.
    """

    prefix: nn.Module | None
    """(N, 3, S, S) images to a tuple of feature tensors, each with N in front; None if nothing is frozen
    from the input on."""
    suffix: nn.Module
    """The features, as positional arguments, to (N, classes) logits. Without a prefix: the network."""
    cut: tuple[str, ...]
    """Names of the modules (or functions) whose outputs are the features."""
    nodes: tuple[str, ...]
    """The same as names of nodes of the trace: equal in every split with equal ``open_modules``."""
    shapes: tuple[tuple[int, ...], ...]
    """Shape of each feature without the batch."""
    note: str
    """How the split was found, or why there is none."""


@dataclass(frozen=True)
class Frozen:
    """What stands still in a phase, as sets of full names."""

    trainable: frozenset[str]
    """Parameters that train."""
    train_modules: frozenset[str]
    """Modules in train mode."""


def mixed_modules(model: nn.Module, trainable: frozenset[str]) -> frozenset[str]:
    """Modules that a trace has to look into.

    Those that hold both trainable and frozen parameters, and those that train but have one layer with
    parameters among others without: heads that begin with the pooling.
    """
    everywhere = _all_names(model, trainable)
    trains: set[str] = set()
    stands: set[str] = set()
    for name, _ in model.named_parameters(remove_duplicate=False):
        target = trains if name in everywhere else stands
        parts = name.split(".")[:-1]
        target.update(".".join(parts[:end]) for end in range(len(parts) + 1))
    heads = {name for name, module in model.named_modules() if name in trains and _is_head_like(module)}
    return frozenset(trains & stands) | heads | {""}


def _all_names(model: nn.Module, parameters: frozenset[str]) -> frozenset[str]:
    """The names of parameters, with the further names of tied ones."""
    named = dict(model.named_parameters(remove_duplicate=False))
    wanted = {id(named[name]) for name in parameters}
    return frozenset(name for name, parameter in named.items() if id(parameter) in wanted)


def _is_head_like(module: nn.Module) -> bool:
    holds = [any(True for _ in child.parameters()) for child in module.children()]
    return sum(holds) == 1 and len(holds) > 1


def split(
    model: nn.Module,
    frozen: Frozen,
    size: int,
    *,
    open_modules: frozenset[str] | None = None,
    taps: Sequence[tuple[str, ...]] = (),
) -> Split:
    """Split ``model`` at the end of what is frozen for images of ``size`` by ``size`` pixels.

    The network must be in the modes of the phase, and may live on the meta device. ``open_modules`` are
    looked into although the phase does not ask for it, so that splits of several phases share names.
    ``taps`` are further node names inside the prefix whose values it returns, after the features.

    Never raises for a network that cannot be traced: then there is no prefix, and the note says why.
    """
    wanted = mixed_modules(model, frozen.trainable) | (open_modules or frozenset())
    try:
        graph = _trace_modes(model, wanted)
        return _Cutter(model, graph, frozen, size).split(taps)
    except _NoCutError as reason:
        return _whole(model, str(reason))
    except Exception as error:
        # Tracing runs the network's own Python, which may fail in any way; the plain network is always
        # right, only slower.
        return _whole(model, f"capture failed: {_in_short(error)}")


def proved(model: nn.Module, parts: Split, images: Tensor) -> Split:
    """``parts`` if they are ``model`` cut in two for ``images`` (N, 3, S, S), N > 2; else no split.

    What a trace cannot know is tried: that a second pass of the prefix gives the same features, that an
    image's features do not depend on its place or its neighbours, and that the halves, put together,
    give the network's own output (in eval mode).
    """
    reason = None if parts.prefix is None else _disproof(model, parts.prefix, parts.suffix, images)
    return parts if reason is None else _whole(model, f"the frozen part cannot be cut off: {reason}")


def _disproof(model: nn.Module, prefix: nn.Module, suffix: nn.Module, images: Tensor) -> str | None:
    order = torch.arange(len(images) - 1, 0, -1, device=images.device)
    try:
        with torch.no_grad():
            features = prefix(images)
            if not _close(prefix(images), features):
                return "two passes give different features"
            if not _close(prefix(images[order]), [feature[order] for feature in features]):
                return "features depend on the other images of their batch"
            with _eval_mode(model):
                if not _close([suffix(*features)], [model(images)]):
                    return "the halves do not give the network's own output"
    except Exception as error:  # the network's own Python, as in a trace
        return _in_short(error)
    return None


def _in_short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


def _close(outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    return all(
        torch.allclose(got, want, rtol=0, atol=_TOLERANCE * float(want.abs().max() + 1e-6))
        for got, want in zip(outputs, expected, strict=True)
    )


class _NoCutError(Exception):
    """There is nothing to cut off, and why."""


def _whole(model: nn.Module, note: str) -> Split:
    return Split(None, model, (), (), (), note)


class _Tracer(fx.Tracer):
    def __init__(self, open_modules: frozenset[str], functions: tuple[Callable[..., Any], ...]):
        super().__init__(autowrap_functions=functions, param_shapes_constant=True)
        self._open = open_modules
        self.failed: str | None = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name not in self._open:
            return True
        if isinstance(m, Adapted):
            return True
        primitive = type(m).__module__.startswith("torch.nn.") and not isinstance(
            m, (nn.Sequential, nn.ModuleList, nn.ModuleDict)
        )
        return primitive and not list(m.children())

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or self.path_of_module(m)
            raise


def _trace(model: nn.Module, open_modules: frozenset[str]) -> fx.Graph:
    """Trace; a module whose inside cannot be traced stays opaque, which only moves the cut before it."""
    _, *rest = inspect.signature(model.forward).parameters.values()
    constants = {item.name: item.default for item in rest if item.default is not inspect.Parameter.empty}
    while True:
        tracer = _Tracer(open_modules, _opaque_functions())
        try:
            return tracer.trace(model, concrete_args=constants)
        except Exception:
            if tracer.failed is None or tracer.failed not in open_modules:
                raise
            open_modules -= {tracer.failed}


def _trace_modes(model: nn.Module, open_modules: frozenset[str]) -> fx.Graph:
    """Trace so that the graph follows the network's mode, as the network's own Python does.

    A trace fixes what code reads from ``self.training``, such as the dropout in front of a head, and the
    suffix would go on dropping in evaluation. Constants that differ between the modes become calls that
    ask the network; code that takes another way in training has no trace.
    """
    graph = _trace(model, open_modules)
    with _eval_mode(model):
        still = _trace(model, open_modules)
    if [_identity(node) for node in graph.nodes] != [_identity(node) for node in still.nodes]:
        raise _NoCutError("the network runs other code in training than in evaluation")
    for node, other in zip(list(graph.nodes), still.nodes, strict=True):
        if node.target in _RANDOM_FUNCTIONS and _probability(node) == 0:
            continue
        values, structure = tree_flatten((node.args, node.kwargs))
        others, _ = tree_flatten((other.args, other.kwargs))
        for place, (here, there) in enumerate(zip(values, others, strict=True)):
            # Nodes, also within slices, are printed by name, which is the same in both traces.
            if repr(here) != repr(there):
                with graph.inserting_before(node):
                    values[place] = graph.call_function(_ByMode(model, here, there))
        node.args, node.kwargs = tree_unflatten(values, structure)
    return graph


def _identity(node: fx.Node) -> tuple[Any, ...]:
    return node.name, node.op, node.target, [item.name for item in node.all_input_nodes]


class _ByMode:
    """A constant of a trace that is another one in eval mode."""

    __name__ = "by_mode"  # what the code of a graph calls it

    def __init__(self, model: nn.Module, train: Any, still: Any):
        self._model, self._train, self._still = model, train, still

    def __call__(self) -> Any:
        return self._train if self._model.training else self._still


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _opaque_functions() -> tuple[Callable[..., Any], ...]:
    from timm.layers._fx import get_notrace_functions

    return tuple(get_notrace_functions())  # type: ignore[no-untyped-call]


class _Values(fx.Interpreter):
    """Runs a graph and keeps the value of every node."""

    def __init__(self, module: fx.GraphModule):
        super().__init__(module, garbage_collect_values=False)
        self.values: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.values[n.name] = value
        return value

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # A graph's lists cannot be changed, but some networks put their results into a list they are given.
        return super().call_module(target, tuple(_plain_list(item) for item in args), kwargs)


def _plain_list(value: Any) -> Any:
    return [_plain_list(item) for item in value] if isinstance(value, list) else value


class _Cutter:
    def __init__(self, model: nn.Module, graph: fx.Graph, frozen: Frozen, size: int):
        self.model = model
        self.graph = graph
        self.module = fx.GraphModule(model, graph)
        self.modules = dict(model.named_modules())
        self.in_train = {self.modules[name] for name in frozen.train_modules}
        self.trainable = _all_names(model, frozen.trainable)
        self.values = [self._run(batch, size) for batch in (2, 3)]
        self.data: set[fx.Node] = set()
        self.pure: set[fx.Node] = set()
        self._classify()

    def _run(self, batch: int, size: int) -> dict[str, Any]:
        reference = next(self.model.parameters())
        images = torch.zeros(batch, 3, size, size, device=reference.device, dtype=reference.dtype)
        interpreter = _Values(self.module)
        # Eval mode for the probe alone: it must not move statistics or draw random numbers.
        with _eval_mode(self.model), torch.no_grad():
            interpreter.run(images)
        return interpreter.values

    def _classify(self) -> None:
        for node in self.graph.nodes:
            inputs = node.all_input_nodes
            if node.op == "placeholder" or any(item in self.data for item in inputs):
                self.data.add(node)
            if node.op != "output" and all(item in self.pure for item in inputs) and self._is_pure(node):
                self.pure.add(node)

    def _is_pure(self, node: fx.Node) -> bool:
        if node.op == "get_attr":
            return node.target not in self.trainable
        if node.op == "call_module":
            return self._module_is_pure(str(node.target))
        if node.op == "call_function" and node.target in _RANDOM_FUNCTIONS:
            training = node.kwargs.get("training", node.args[2] if len(node.args) > 2 else True)
            return not training or _probability(node) == 0
        if isinstance(node.target, _ByMode):
            return False
        return node.op != "call_method" or node.target not in {"bernoulli_", "normal_", "uniform_"}

    def _module_is_pure(self, name: str) -> bool:
        for parameter, _ in self.modules[name].named_parameters(remove_duplicate=False):
            if f"{name}.{parameter}" in self.trainable:
                return False
        return not any(
            module in self.in_train and (keeps_statistics(module) or draws_random(module))
            for module in self.modules[name].modules()
        )

    # ------------------------------------------------------------------ the cut

    def split(self, taps: Sequence[tuple[str, ...]]) -> Split:
        features = self._frontier()
        names = tuple(node.name for node in features)
        by_name = {node.name: node for node in self.graph.nodes}
        extra = [by_name[name] for tap in taps for name in tap]
        if any(node not in self.pure for node in extra):
            raise _NoCutError("a tap is not in the frozen part")
        return Split(
            prefix=self._prefix([*features, *extra]),
            suffix=self._suffix(features),
            cut=tuple(str(node.target) if node.op == "call_module" else node.name for node in features),
            nodes=names,
            shapes=tuple(tuple(self.values[0][name].shape[1:]) for name in names),
            note="traced at module granularity",
        )

    def _frontier(self) -> list[fx.Node]:
        """Pure tensors that the rest of the network reads, in order of the trace."""
        while True:
            features: list[fx.Node] = []
            again = False
            for node in self.graph.nodes:
                if node not in self.pure or node not in self.data:
                    continue
                if not any(user not in self.pure for user in node.users):
                    continue
                kind = self._kind(node)
                if kind == "features":
                    features.append(node)
                elif kind == "other":
                    # Neither a batch of features nor a number that can be rebuilt: leave it to the suffix.
                    self._taint(node)
                    again = True
            if again:
                continue
            if not features:
                raise _NoCutError("no frozen layer stands at the input")
            features = [self._shrink(features[0])] if len(features) == 1 else features
            if any(node.op == "placeholder" for node in features):
                raise _NoCutError("what trains reads the images themselves")
            return features

    def _kind(self, node: fx.Node) -> str:
        two, three = (values[node.name] for values in self.values)
        if isinstance(two, Tensor):
            return "features" if (two.shape[:1], three.shape[:1]) == ((2,), (3,)) else "other"
        if isinstance(two, int):
            return "batch" if (two, three) == (2, 3) else ("constant" if two == three else "other")
        return "other"

    def _taint(self, node: fx.Node) -> None:
        self.pure.discard(node)
        for user in node.users:
            if user in self.pure:
                self._taint(user)

    def _shrink(self, node: fx.Node) -> fx.Node:
        """Step back over parameter-free layers that made the features larger."""
        while True:
            inputs = [item for item in node.all_input_nodes if item in self.data]
            if len(inputs) != 1 or self._kind(inputs[0]) != "features" or inputs[0].op == "placeholder":
                return node
            if node.op == "call_module" and any(True for _ in self.modules[str(node.target)].parameters()):
                return node
            if any(user is not node for user in inputs[0].users):
                return node
            if self.values[0][inputs[0].name].numel() >= self.values[0][node.name].numel():
                return node
            self.pure.discard(node)
            node = inputs[0]

    def _prefix(self, outputs: Sequence[fx.Node]) -> fx.GraphModule:
        graph = fx.Graph()
        copied: dict[fx.Node, fx.Node] = {}
        results: dict[fx.Node, fx.Node] = {}
        needed = _closure(outputs)
        for node in self.graph.nodes:
            if node.op == "placeholder" and node not in needed and node.users:
                continue
            if node in needed or node.op == "placeholder":
                copied[node] = graph.node_copy(node, lambda item: copied[item])
            if node in outputs:
                results[node] = copied[node]
                if any(user in needed for user in node.users):
                    # What reads it next may work in place.
                    results[node] = graph.call_method("clone", (copied[node],))
        graph.output(tuple(results[node] for node in outputs))
        return fx.GraphModule(self.model, graph)

    def _suffix(self, features: Sequence[fx.Node]) -> fx.GraphModule:
        graph = fx.Graph()
        copied: dict[fx.Node, fx.Node] = {node: graph.placeholder(node.name) for node in features}
        first = copied[features[0]]
        needed = _closure([node for node in self.graph.nodes if node.op == "output"], stop=set(features))
        for node in self.graph.nodes:
            if node in copied or node not in needed or node.op == "placeholder":
                continue
            if node in self.pure and node in self.data:
                kind = self._kind(node)
                if kind == "batch":
                    shape = graph.call_function(getattr, (first, "shape"))
                    copied[node] = graph.call_function(operator.getitem, (shape, 0))
                    continue
                if kind == "constant" and any(user not in self.pure for user in node.users):
                    copied[node] = self.values[0][node.name]
                    continue
                if not all(item in copied for item in node.all_input_nodes):
                    continue
            copied[node] = graph.node_copy(node, lambda item: copied[item])
        return fx.GraphModule(self.model, graph)


def _probability(node: fx.Node) -> Any:
    return node.kwargs.get("p", node.args[1] if len(node.args) > 1 else 0.5)


def _closure(nodes: Iterable[fx.Node], stop: set[fx.Node] | None = None) -> set[fx.Node]:
    """All nodes that ``nodes`` depend on, themselves included, not looking behind ``stop``."""
    found: set[fx.Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node in found:
            continue
        found.add(node)
        if stop is None or node not in stop:
            waiting.extend(node.all_input_nodes)
    return found


def keeps_statistics(module: nn.Module) -> bool:
    """Whether a module updates running statistics in train mode."""
    return getattr(module, "running_mean", None) is not None or isinstance(
        module, nn.modules.batchnorm._BatchNorm
    )


def draws_random(module: nn.Module) -> bool:
    """Whether a module may draw random numbers in train mode.

    More is suspected than the parameter table shows: what is wrongly taken for random is computed again,
    what is wrongly taken for fixed would be stored.
    """
    suspect = getattr(module, "p", None)
    return draw_rate(module) > 0 or (isinstance(suspect, float) and suspect > 0)
