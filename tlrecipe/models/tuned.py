"""Training steps with less work for the same gradients, up to rounding.

A batch norm in eval mode is an affine map, yet it is run and differentiated as a layer of its own: here it is
folded into the convolution before it, *inside* the graph, so that the weights of both still train ("Tune"
mode, https://arxiv.org/abs/2305.11624). On CPUs, some convolutions reach no fast kernel on the way back, and
are computed in another way:

- the weight gradient of a depthwise convolution with a large kernel, as a depthwise convolution of the images
  with the gradients, and with tiny maps as products of matrices;
- its image gradient as a convolution, and with a stride in float32, whatever autocast says;
- convolutions of 1 x 1 under autocast, as products of matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import prod
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tlrecipe.models.adapters import UP, LoraConv2d
from tlrecipe.models.fast import after_norm
from tlrecipe.models.observed import copied, follows, run, same
from tlrecipe.models.onednn import pair

# Kernels from this size on have no fast weight gradient of their own.
_LARGE_KERNEL = 5
# Pairs of a pixel and an output of one channel up to which all their products are the fastest way to it.
_PAIRS = 16


class TunedSteps:
    """Faster steps of ``network`` while it is entered: its layers compute the same in another way.

    ``inputs`` are float32 tensors that the network takes, (N, …) each; ``standing`` the modules that are in
    eval mode during training. The network is run on them to find what can be folded and to prove that its
    outputs stay the same; where they do not, nothing is folded. Parameters, buffers, names and modes are
    the network's own all the time.
    """

    def __init__(self, network: nn.Module, inputs: Sequence[Tensor]):
        self._forwards: dict[nn.Module, Callable[..., Tensor]] = {}
        twin = copied(network)
        standing = {name for name, module in network.named_modules() if not module.training}
        names = {module: name for name, module in twin.named_modules()}
        pairs = [
            (names[conv], names[norm])
            for conv, norm in follows(twin, inputs, nn.BatchNorm2d)
            if names[norm] in standing and norm.running_mean is not None
        ]
        expected = run(twin, *inputs)
        for conv, norm in pairs:
            _patch(twin, _folded(twin.get_submodule(conv), twin.get_submodule(norm)))
        if pairs and not same(run(twin, *inputs), expected):
            pairs = []
        self.folded = len(pairs)
        """Batch norms that are folded."""
        for conv, norm in pairs:
            self._forwards |= _folded(network.get_submodule(conv), network.get_submodule(norm))
        self.replaced = 0
        """Convolutions that are computed in another way."""
        if inputs[0].device.type == "cpu":
            for module in network.modules():
                if _is_depthwise(module) or _is_pointwise(module):
                    inner = self._forwards.get(module, module.forward)
                    self._forwards[module] = _by_own_kernels(inner)
                    self.replaced += 1

    def __bool__(self) -> bool:
        return bool(self._forwards)

    def __enter__(self) -> TunedSteps:
        for module, forward in self._forwards.items():
            module.forward = forward
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for module in self._forwards:
            del module.forward


def _patch(network: nn.Module, forwards: dict[nn.Module, Callable[..., Tensor]]) -> None:
    for module, forward in forwards.items():
        module.forward = forward


# --------------------------------------------------------------------------- batch norm in the convolution


def _folded(conv: Any, norm: Any) -> dict[nn.Module, Callable[..., Tensor]]:
    """Forward functions of a convolution and the batch norm after it, the second folded into the first."""
    original = type(conv).forward

    def forward(images: Tensor) -> Tensor:
        scale = (norm.running_var + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight
        bias = -norm.running_mean if conv.bias is None else conv.bias - norm.running_mean
        bias = bias * scale if norm.bias is None else bias * scale + norm.bias
        own = dict(conv._parameters)
        # The class's own forward may pad or do more than convolve: it runs with other weights.
        of_outputs = ("weight", UP) if isinstance(conv, LoraConv2d) else ("weight",)
        scaled = {name: own[name] * scale.view(-1, 1, 1, 1) for name in of_outputs}
        conv._parameters.update(scaled, bias=bias)
        try:
            return torch.as_tensor(original(conv, images))
        finally:
            conv._parameters.update(own)

    return {conv: forward, norm: after_norm(norm).forward}


# --------------------------------------------------------------------------- other ways to convolve


def _is_depthwise(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and module.groups == module.in_channels == module.out_channels > 1
        and module.dilation == (1, 1)
        and module.weight.dtype in (torch.float32, torch.float64)
    )


def _is_pointwise(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and (module.kernel_size, module.stride, module.groups) == ((1, 1), (1, 1), 1)
        and module.padding in ((0, 0), "same", "valid")
        and module.weight.dtype in (torch.float32, torch.float64)
    )


def _by_own_kernels(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def own(images: Tensor) -> Tensor:
        with _OwnKernels():
            return forward(images)

    return own


class _OwnKernels(TorchFunctionMode):
    """Replaces the convolution that a layer calls, whatever it does around it."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not torch.conv2d or not torch.is_grad_enabled():
            return func(*args, **(kwargs or {}))
        return _convolve(*args, **(kwargs or {}))


def _convolve(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    narrow = torch.is_autocast_enabled("cpu")
    if isinstance(padding, str) or (groups == 1 and not narrow):
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    if narrow:
        dtype = torch.get_autocast_dtype("cpu")
        input, weight = input.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    if groups == 1:
        return torch.as_tensor(_Pointwise.apply(input, weight, bias))
    return torch.as_tensor(_Depthwise.apply(input, weight, bias, pair(stride), pair(padding), groups))


class _Pointwise(torch.autograd.Function):
    """A convolution of 1 x 1 as a product of matrices whose rows are the pixels. All tensors are of one
    type.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(images, weight)
        rows, matrix = _rows(images), weight.flatten(1).t()
        result, its_rows = _rows_of_new(images, len(weight))
        with torch.autocast("cpu", enabled=False):
            if bias is None:
                torch.mm(rows, matrix, out=its_rows)
            else:
                torch.addmm(bias, rows, matrix, out=its_rows)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        images, weight = ctx.saved_tensors
        needs_images, needs_weight, needs_bias = ctx.needs_input_grad
        rows, matrix = _rows(gradient), weight.flatten(1)
        of_images = of_weight = None
        with torch.autocast("cpu", enabled=False):
            if needs_images:
                of_images, its_rows = _rows_of_new(gradient, images.shape[1])
                torch.mm(rows, matrix, out=its_rows)
            if needs_weight:
                of_weight = torch.mm(rows.t(), _rows(images)).view_as(weight)
            of_bias = rows.sum(0) if needs_bias else None
        return of_images, of_weight, of_bias


def _rows(images: Tensor) -> Tensor:
    """(N, C, H, W) as a matrix (N·H·W, C), without a copy where it is channels-last."""
    return images.permute(0, 2, 3, 1).reshape(-1, images.shape[1])


def _rows_of_new(like: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """A new (N, channels, H, W), and its rows to be written. A view as a result would make what comes after
    it and works in place copy it."""
    count, _, height, width = like.shape
    new = torch.empty(
        (count, channels, height, width),
        dtype=like.dtype,
        device=like.device,
        memory_format=torch.channels_last,
    )
    return new, new.permute(0, 2, 3, 1).view(-1, channels)


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution with the fastest way to each of its gradients. All tensors are of one type."""

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
        groups: int,
    ) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.stride, ctx.padding, ctx.groups = stride, padding, groups
        return torch.conv2d(images, weight, bias, stride, padding, 1, groups)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        images, weight = ctx.saved_tensors
        stride, padding = ctx.stride, ctx.padding
        needs_images, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        with torch.autocast("cpu", enabled=False):
            of_images = _of_images(images.shape, gradient, weight, stride, padding) if needs_images else None
            of_weight = _of_weight(images, gradient, weight, stride, padding) if needs_weight else None
            # Asked for beside the other two, it would bring the slow kernel back.
            of_bias = gradient.sum((0, 2, 3)) if needs_bias else None
        return of_images, of_weight, of_bias, None, None, None


def _of_images(
    shape: torch.Size, gradient: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """The gradient of the images: a transposed convolution."""
    groups, kernel = len(weight), weight.shape[2:]
    if stride == (1, 1) and all(pad < size for pad, size in zip(padding, kernel, strict=True)):
        # Without a stride that is a convolution with the kernel turned round, which is twice as fast.
        back = [size - 1 - pad for pad, size in zip(padding, kernel, strict=True)]
        return torch.conv2d(gradient, weight.flip(2, 3), None, 1, back, 1, groups)
    left_over = [
        full + 2 * pad - size - step * (out - 1)
        for full, pad, size, step, out in zip(
            shape[2:], padding, kernel, stride, gradient.shape[2:], strict=True
        )
    ]
    # In bfloat16 it takes a hundred times as long.
    wide = torch.promote_types(gradient.dtype, torch.float32)
    result = torch.nn.functional.conv_transpose2d(
        gradient.to(wide), weight.to(wide), None, stride, padding, left_over, groups
    )
    return result.to(gradient.dtype)


def _of_weight(
    images: Tensor, gradient: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """The gradient of the weights, by the way that is fastest for these sizes."""
    if prod(images.shape[2:]) * prod(gradient.shape[2:]) <= _PAIRS:
        return _by_pairs(images, gradient, weight, stride, padding)
    if min(weight.shape[2:]) >= _LARGE_KERNEL:
        return _by_channels(images, gradient, weight, stride, padding)
    _, of_weight, _ = torch.ops.aten.convolution_backward(
        gradient,
        images,
        weight,
        None,
        stride,
        padding,
        (1, 1),
        False,
        (0, 0),
        len(weight),
        (False, True, False),
    )
    return torch.as_tensor(of_weight)


def _by_channels(
    images: Tensor, gradient: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """Each channel of each image, convolved with its gradient, and the sum of these over the images."""
    count, channels = gradient.shape[:2]
    # Each image's channel is a channel of its own here; a stride becomes a dilation.
    taps = torch.conv2d(
        images.contiguous().view(1, count * channels, *images.shape[2:]),
        gradient.contiguous().view(count * channels, 1, *gradient.shape[2:]),
        padding=padding,
        dilation=stride,
        groups=count * channels,
    )
    height, width = weight.shape[2:]
    return taps[0, :, :height, :width].reshape(count, *weight.shape).sum(0)


def _by_pairs(
    images: Tensor, gradient: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """All products of a pixel and a gradient, summed over the images, then into the tap that joins both."""
    channels = len(weight)
    pixels = images.permute(1, 2, 3, 0).flatten(1, 2)
    gradients = gradient.permute(1, 0, 2, 3).flatten(2)
    products = torch.bmm(pixels, gradients).view(channels, -1)
    taps = _taps(images.shape[2:], gradient.shape[2:], weight.shape[2:], stride, padding)
    return (products @ taps.to(products.dtype)).view_as(weight)


@lru_cache(maxsize=64)
def _taps(
    pixels: torch.Size,
    outputs: torch.Size,
    kernel: torch.Size,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Tensor:
    """(pixels x outputs, taps) of ones where a tap of the kernel joins a pixel and an output."""
    joined = torch.ones((), dtype=torch.bool)
    tap = torch.zeros((), dtype=torch.long)
    for axis in range(2):
        place = torch.arange(pixels[axis]).view(-1, 1) + padding[axis]
        offset = place - torch.arange(outputs[axis]) * stride[axis]
        shape = [1, 1, 1, 1]
        shape[axis], shape[axis + 2] = offset.shape
        offset = offset.view(shape)
        joined = joined & (offset >= 0) & (offset < kernel[axis])
        tap = tap * kernel[axis] + offset
    count = prod(kernel)
    one_hot = torch.nn.functional.one_hot(torch.where(joined, tap, count).flatten(), count + 1)
    return one_hot[:, :count].contiguous()
