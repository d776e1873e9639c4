"""Training steps with less work for the same gradients, up to rounding.

Two things are slow on the way back. A batch norm in eval mode is an affine map, yet it is run and
differentiated as a layer of its own: here it is folded into the convolution before it, *inside* the
graph, so that the weights of both still train ("Tune" mode, https://arxiv.org/abs/2305.11624). And the
weight gradient of a depthwise convolution with a large kernel reaches no fast kernel on CPUs: here it is
computed as a depthwise convolution too, of the images with the gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tlrecipe.models.fast import after_norm, copied, follows, run, same

# Kernels up to 3 x 3 have a fast weight gradient of their own.
_LARGE_KERNEL = 5


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
        pairs = [(names[c], names[n]) for c, n in follows(twin, *inputs) if names[n] in standing]
        expected = run(twin, *inputs)
        for conv, norm in pairs:
            _patch(twin, _folded(twin.get_submodule(conv), twin.get_submodule(norm)))
        if pairs and not same(run(twin, *inputs), expected):
            pairs = []
        self.folded = len(pairs)
        """Batch norms that are folded."""
        for conv, norm in pairs:
            self._forwards |= _folded(network.get_submodule(conv), network.get_submodule(norm))
        self.depthwise = 0
        """Depthwise convolutions with another weight gradient."""
        if inputs[0].device.type == "cpu":
            for module in network.modules():
                if _slow_gradient(module):
                    inner = self._forwards.get(module, module.forward)
                    self._forwards[module] = _with_own_gradient(inner)
                    self.depthwise += 1

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
        conv._parameters.update(weight=conv.weight * scale.view(-1, 1, 1, 1), bias=bias)
        try:
            return torch.as_tensor(original(conv, images))
        finally:
            conv._parameters.update(own)

    return {conv: forward, norm: after_norm(norm).forward}


# --------------------------------------------------------------------------- depthwise weight gradients


def _slow_gradient(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and module.groups == module.in_channels == module.out_channels > 1
        and min(module.kernel_size) >= _LARGE_KERNEL
        and module.dilation == (1, 1)
        and module.weight.requires_grad
        and module.weight.dtype in (torch.float32, torch.float64)
    )


def _with_own_gradient(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def own(images: Tensor) -> Tensor:
        with _OwnGradient():
            return forward(images)

    return own


class _OwnGradient(TorchFunctionMode):
    """Replaces the convolution that a layer calls, whatever it does around it."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not torch.conv2d or not torch.is_grad_enabled():
            return func(*args, **(kwargs or {}))
        return _depthwise(*args, **(kwargs or {}))


def _depthwise(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    if isinstance(padding, str):
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    result: Tensor = _Depthwise.apply(input, weight, bias, _pair(stride), _pair(padding), groups)
    return result


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value) * (2 // len(value))


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution whose weight gradient is a depthwise convolution over images and channels."""

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
        needs_images, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        of_images = None
        if needs_images:
            of_images, _, _ = torch.ops.aten.convolution_backward(
                gradient,
                images,
                weight,
                None,
                ctx.stride,
                ctx.padding,
                (1, 1),
                False,
                (0, 0),
                ctx.groups,
                (True, False, False),
            )
        # Asked for beside the other two, it would bring the slow kernel back.
        of_bias = gradient.sum((0, 2, 3)) if needs_bias else None
        of_weight = None
        if needs_weight:
            count, channels = gradient.shape[:2]
            # Each image's channel is a channel of its own here; a stride becomes a dilation.
            taps = torch.conv2d(
                images.contiguous().view(1, count * channels, *images.shape[2:]),
                gradient.contiguous().view(count * channels, 1, *gradient.shape[2:]),
                padding=ctx.padding,
                dilation=ctx.stride,
                groups=count * channels,
            )
            height, width = weight.shape[2:]
            of_weight = taps[0, :, :height, :width].reshape(count, *weight.shape).sum(0)
        return of_images, of_weight, of_bias, None, None, None
