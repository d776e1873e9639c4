"""Convolutions of an inference copy as oneDNN runs them fastest on a CPU.

Three things that PyTorch's layers repeat in each pass are done once, or beside other work:

- what a layer computes before it convolves (standardised weights, an uneven "same" padding, which costs a
  copy of all images) goes into the kernel;
- an activation after a convolution is applied before its output leaves the registers;
- weights are kept in the blocked layout that the kernel wants, instead of being rearranged.

The operator is the one that torch.compile's CPU backend takes for this
(https://github.com/pytorch/pytorch/blob/main/torch/_inductor/mkldnn_lowerings.py). It is not public: what it
gives is compared with what the layers give, and where it differs, or fails, the layers stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tlrecipe.models.observed import follows, keep_if_same, put

# The operator's name of an activation, its numbers and its algorithm. Exact types: a subclass may do more.
_ACTIVATIONS: dict[type[nn.Module], Callable[[Any], tuple[str, list[float], str]]] = {
    nn.ReLU: lambda _: ("relu", [], ""),
    nn.ReLU6: lambda _: ("hardtanh", [0.0, 6.0], ""),
    nn.Hardtanh: lambda layer: ("hardtanh", [layer.min_val, layer.max_val], ""),
    nn.LeakyReLU: lambda layer: ("leaky_relu", [layer.negative_slope], ""),
    nn.SiLU: lambda _: ("swish", [], ""),
    nn.Hardswish: lambda _: ("hardswish", [], ""),
    nn.GELU: lambda layer: ("gelu", [], layer.approximate),
}


def straighten(network: nn.Module, sample: Tensor) -> None:
    """Make plain convolutions of layers that pad, or prepare weights, before they convolve, where it is
    exact.

    ``network`` takes ``sample``, (N, 3, S, S), and images of that size only from then on.
    """
    shapes = _input_shapes(network, sample)
    kinds = {name: module for name, module in network.named_modules() if module in shapes and name}
    plain = {name: _plain(conv, shapes[conv]) for name, conv in kinds.items() if not _is_plain(conv)}
    found = {name: conv for name, conv in plain.items() if conv is not None}
    if found:
        keep_if_same(network, [sample], (put(network, name, conv) for name, conv in found.items()))


def pack(network: nn.Module, sample: Tensor) -> None:
    """Replace plain convolutions, and activations that follow one, by :class:`PackedConvolution`.

    ``network`` and ``sample`` have the type that it runs in.
    """
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not available or not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        return
    shapes = _input_shapes(network, sample)
    names = {module: name for name, module in network.named_modules()}
    activations = {
        conv: activation
        for conv, activation in follows(network, [sample], *_ACTIVATIONS)
        if type(activation) in _ACTIVATIONS
    }

    def packed() -> Iterator[Callable[[], None]]:
        for conv, shape in shapes.items():
            if _is_plain(conv) and names[conv]:
                activation = activations.get(conv)
                yield put(network, names[conv], PackedConvolution(conv, shape, activation))
                if activation is not None:
                    yield put(network, names[activation], nn.Identity())

    keep_if_same(network, [sample], packed())


class PackedConvolution(nn.Module):
    """A convolution and the activation after it in one kernel: (N, C, H, W) to (N, C', H', W'), no gradients.

    ``shape`` is that of its usual input, for which the layout of the weights is chosen. The weights are no
    parameter and not part of a state dict.
    """

    def __init__(self, conv: nn.Conv2d, shape: torch.Size, activation: nn.Module | None):
        super().__init__()
        self.bias = conv.bias
        self._geometry = (conv.padding, conv.stride, conv.dilation, conv.groups)
        self._activation = (
            ("none", [], "") if activation is None else _ACTIVATIONS[type(activation)](activation)
        )
        self._weight = torch.ops.aten.mkldnn_reorder_conv2d_weight(
            conv.weight.detach().to_mkldnn(), *self._geometry, shape
        )

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = torch.ops.mkldnn._convolution_pointwise(
            images, self._weight, self.bias, *self._geometry, *self._activation
        )
        return result


def _is_plain(conv: nn.Conv2d) -> bool:
    """Whether a layer does nothing but convolve its input, padded evenly with zeros, by its weight."""
    return type(conv) is nn.Conv2d and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


def _input_shapes(network: nn.Module, sample: Tensor) -> dict[nn.Conv2d, torch.Size]:
    """The input's shape of each convolution that is called exactly once."""
    shapes: dict[nn.Conv2d, list[torch.Size]] = {}

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        assert isinstance(module, nn.Conv2d)
        shapes.setdefault(module, []).append(args[0].shape)

    handles = [m.register_forward_pre_hook(note) for m in network.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        network(sample)
    for handle in handles:
        handle.remove()
    return {conv: seen[0] for conv, seen in shapes.items() if len(seen) == 1}


# --------------------------------------------------------------------------- what a layer does by itself


class _Recorder(TorchFunctionMode):
    """Keeps the calls of torch's functions, outermost only."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, dict[str, Any], Tensor]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _ARGUMENTS:
            self.calls.append(
                (func, dict(zip(_ARGUMENTS[func], args, strict=False)) | (kwargs or {}), result)
            )
        return result


_ARGUMENTS = {
    torch.conv2d: ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    F.pad: ("input", "pad", "mode", "value"),
}


def _plain(conv: nn.Conv2d, shape: torch.Size) -> nn.Conv2d | None:
    """A plain convolution that does what a layer does with input of ``shape``, or None if that is more.

    The layer's own forward is watched: it may pad its input with zeros and convolve that, with any weight.
    """
    images = torch.zeros(shape, dtype=conv.weight.dtype, device=conv.weight.device)
    with torch.no_grad(), _Recorder() as recorder:
        output = conv(images)
    *before, last = recorder.calls or [(None, {}, None)]
    function, call, result = last
    if function is not torch.conv2d or result is not output:
        return None
    pads = (0, 0, 0, 0)
    if call["input"] is not images:
        if len(before) != 1:
            return None
        ((_, padding, padded),) = before
        zeros = padding.get("mode", "constant") == "constant" and not padding.get("value")
        if (
            padded is not call["input"]
            or padding["input"] is not images
            or not zeros
            or len(padding["pad"]) != 4
        ):
            return None
        pads = tuple(padding["pad"])
    even = call.get("padding", 0)
    if isinstance(even, str):
        return None
    return _convolution(call, pads, pair(even))


def _convolution(call: dict[str, Any], pads: tuple[int, ...], even: tuple[int, int]) -> nn.Conv2d | None:
    """The layer of a call; what one side is padded by more than the other becomes zeros of the kernel."""
    weight, bias = call["weight"].detach(), call.get("bias")
    dilation, groups = pair(call.get("dilation", 1)), call.get("groups", 1)
    left, right, top, bottom = (pads[0] + even[1], pads[1] + even[1], pads[2] + even[0], pads[3] + even[0])
    if min(left, right, top, bottom) < 0 or ((left, top) != (right, bottom) and dilation != (1, 1)):
        return None
    # More padding after than before: the kernel starts with zeros, and the padding before grows to match.
    weight = F.pad(
        weight, (max(right - left, 0), max(left - right, 0), max(bottom - top, 0), max(top - bottom, 0))
    )
    conv: nn.Conv2d = nn.utils.skip_init(  # type: ignore[no-untyped-call]
        nn.Conv2d,
        weight.shape[1] * groups,
        weight.shape[0],
        tuple(weight.shape[2:]),
        pair(call.get("stride", 1)),
        (max(top, bottom), max(left, right)),
        dilation,
        groups,
        bias is not None,
        device=weight.device,
        dtype=weight.dtype,
    )
    conv.weight = nn.Parameter(weight.to(memory_format=torch.channels_last), requires_grad=False)
    if bias is not None:
        conv.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return conv.eval()


def pair(value: Any) -> tuple[int, int]:
    """A stride, padding or dilation of a convolution as (height, width), however it was given."""
    return (value, value) if isinstance(value, int) else tuple(value) * (2 // len(value))
