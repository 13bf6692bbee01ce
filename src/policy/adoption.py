"""A policy takes up weights that were trained elsewhere: tuned network and base stay apart, as in training.

A LoRA stays an adapter, with its own ranks, alphas and modules, and a full UNet a full UNet, so that a policy computes
what it did when it was trained, to the bit.
"""

from collections import Counter
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from src.errors import UserError
from src.policy.diffusion import DiffusionPolicy
from src.policy.weights import PARTS, Adapter, Weights, check_parts, check_unet, read_lora, read_unet


def adopt(policy: DiffusionPolicy, weights: Weights, base: str, scale: float = 1.0) -> None:
    """Gives a policy these weights, of which only a part where `scale` is not 1.

    Args:
        policy: of the kind of the weights.
        weights: a LoRA or a full UNet; policy.finetune is their kind.
        base: what messages call the policy's base.
        scale: of a LoRA the factor of its alpha; of full weights the place on the line from the base's, 0, to these, 1.

    Raises UserError on weights that do not fit.
    """
    if policy.finetune != weights.kind:
        raise UserError(f"{weights.option}: {weights.form}, among weights of the other kind; evaluate them apart.")
    if weights.kind == "full":
        _adopt_unet(policy, weights, base, scale)
    else:
        _remove_adapters(policy.network)
        tensors = {name: value for name, value in policy.network.state_dict().items() if value.ndim > 1}
        modules = {name.removesuffix(".weight"): value for name, value in tensors.items()}
        _add(policy, read_lora(weights, modules, base), scale)


def _remove_adapters(unet: Any) -> None:
    """Leaves the base's own modules, untouched."""
    for name, module in [(name, m) for name, m in unet.named_modules() if isinstance(m, BaseTunerLayer)]:
        unet.set_submodule(name, module.get_base_layer())
    if hasattr(unet, "peft_config"):
        del unet.peft_config  # the next adapter makes another
        unet._hf_peft_config_loaded = False


def _adopt_unet(policy: DiffusionPolicy, weights: Weights, base: str, scale: float) -> None:
    state, own = read_unet(weights), policy.base_network.state_dict()
    check_unet(state, own, weights, base)
    parts = {part: getattr(policy, part).state_dict() for part in PARTS if hasattr(policy, part)}
    check_parts(weights, parts, policy.sampler.prediction_type, base)
    with torch.no_grad():
        for name, value in policy.network.state_dict().items():
            value.copy_(torch.lerp(own[name].to(value), state[name].to(value), scale))


def _add(policy: DiffusionPolicy, adapters: dict[str, Adapter], scale: float) -> None:
    ranks = {module: adapter.rank for module, adapter in adapters.items()}
    alphas = {module: adapter.alpha * scale for module, adapter in adapters.items()}
    (rank, _), (alpha, _) = (Counter(values.values()).most_common(1)[0] for values in (ranks, alphas))
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=list(adapters),
        rank_pattern={f"^{module}": other for module, other in ranks.items() if other != rank},
        alpha_pattern={f"^{module}": other for module, other in alphas.items() if other != alpha},
    )
    policy.network.add_adapter(config)
    for module, adapter in adapters.items():
        layer = policy.network.get_submodule(module)
        _copy(layer.lora_A["default"].weight, adapter.down)
        _copy(layer.lora_B["default"].weight, adapter.up)


@torch.no_grad()
def _copy(to: Tensor, value: Tensor) -> None:
    to.copy_(value)
