"""Low-rank adapters on a network (Hu et al. 2021, arXiv 2106.09685)."""

from collections.abc import Sequence
from typing import Any

from peft import LoraConfig

from src.errors import UserError, first_line


def add_lora(network: Any, rank: int, alpha: int, targets: Sequence[str], attention: Sequence[str]) -> None:
    """Adds fresh adapters, which change nothing yet.

    Args:
        network: of diffusers.
        rank: inner width of an adapter's two matrices.
        alpha: it adds alpha / rank times their product.
        targets: ends of modules' names, or one regular expression for whole names.
        attention: the ends of its attention's modules.

    Raises UserError on targets that the network has none of, or that cannot be adapted.
    """
    for key, value in (("lora_rank", rank), ("lora_alpha", alpha)):
        if value < 1:
            raise UserError(f"policy.{key}={value} must be at least 1, or the adapters add nothing.")
    own = f"its attention's are {', '.join(attention[:-1])} and {attention[-1]}."
    which = targets if isinstance(targets, str) else list(targets)
    if not which:
        raise UserError(f"policy.lora_targets={which} names no module of the network; {own}")
    names = [f".{name}" for name, _ in network.named_modules()]
    for target in [] if isinstance(which, str) else which:
        if not any(name.endswith(f".{target}") for name in names):
            raise UserError(f"policy.lora_targets: the network has no module that ends in {target}; {own}")
    try:
        network.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=which, init_lora_weights="gaussian"))
    except ValueError as error:
        raise UserError(f"policy.lora_targets={which} cannot be adapted ({first_line(error)}); {own}") from error
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # whatever the frozen weights are in
