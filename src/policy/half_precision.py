"""What half precision needs on a CPU to be the faster one: attention in float32, and weights that are contiguous.

There the backward pass of torch 2.13's fused attention takes ten times as long in bfloat16 as in float32, and
normalisation over groups in channels-last layout as well.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only


def suited_attention(network: Any, device: torch.device) -> AbstractContextManager:
    """The context that the network's forward pass on this device belongs in.

    None with gradient checkpointing, whose second forward pass would be outside of it and save tensors of other dtypes.
    """
    inside = _half_on_cpu(device) and not network.is_gradient_checkpointing
    return AttentionInFloat32() if inside else nullcontext()


def laid_out(network: nn.Module, device: torch.device) -> nn.Module:
    """The network; its weights, which are otherwise in the channels-last layout, contiguous for half on a CPU."""
    if _half_on_cpu(device) and not all(parameter.is_contiguous() for parameter in network.parameters()):
        network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return network


def _half_on_cpu(device: torch.device) -> bool:
    return device.type == "cpu" and torch.is_autocast_enabled("cpu")


class AttentionInFloat32(TorchFunctionMode):
    """While it lasts, `scaled_dot_product_attention` computes in float32; its result has the dtype of the values."""

    def __torch_function__(
        self, func: Callable, types: Iterable[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        values = kwargs["value"] if "value" in kwargs else args[2]
        args, kwargs = tree_map_only(Tensor, _in_float32, (args, kwargs))
        with torch.autocast("cpu", enabled=False):
            return func(*args, **kwargs).to(values.dtype)


def _in_float32(part: Tensor) -> Tensor:
    return part if part.dtype == torch.bool else part.float()  # a mask may be of either kind
