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
from src.policy.weights import (
    PARTS,
    Adapter,
    Weights,
    check_finite,
    check_parts,
    check_unet,
    read_lora,
    read_unet,
    shapes_of_unet,
)

MATRICES = ("down", "up")  # of an adapter


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
        adapters = read_lora(weights, _modules(policy), base)
        check_finite(weights, {f"{name}.{part}": getattr(a, part) for name, a in adapters.items() for part in MATRICES})
        _remove_adapters(policy.network)
        _add(policy, adapters, scale)


def check_fit(policy: DiffusionPolicy, weights: Weights, base: str) -> None:
    """Raises UserError on weights that the policy could not take up, by names and shapes; it stays as it is."""
    if weights.kind == "lora":
        read_lora(weights, _modules(policy), base)
        return
    check_unet(shapes_of_unet(weights), policy.base_network.state_dict(), weights, base)
    _check_parts(policy, weights, base)


def _modules(policy: DiffusionPolicy) -> dict[str, Tensor]:
    """Weights of the base's network by module, whether it has adapters now or not."""
    own = {name: value for name, value in policy.network.state_dict().items() if ".lora_" not in name}
    return {
        name.replace(".base_layer.", ".").removesuffix(".weight"): value
        for name, value in own.items()
        if value.ndim > 1
    }


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
    check_finite(weights, state)
    _check_parts(policy, weights, base)
    with torch.no_grad():
        for name, value in policy.network.state_dict().items():
            value.copy_(torch.lerp(own[name].to(value), state[name].to(value), scale))


def _check_parts(policy: DiffusionPolicy, weights: Weights, base: str) -> None:
    parts = {part: getattr(policy, part).state_dict() for part in PARTS if hasattr(policy, part)}
    check_parts(weights, parts, policy.sampler.prediction_type, base)


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
