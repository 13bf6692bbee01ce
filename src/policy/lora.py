"""Low-rank adapters on a UNet (Hu et al. 2021, arXiv 2106.09685)."""

from collections.abc import Sequence

from diffusers import UNet2DConditionModel
from peft import LoraConfig

from src.errors import UserError, first_line

ATTENTION = "its attention's are to_q, to_k, to_v and to_out.0."


def add_lora(unet: UNet2DConditionModel, rank: int, alpha: int, targets: Sequence[str]) -> None:
    """Adds fresh adapters, which change nothing yet.

    Args:
        targets: ends of modules' names, or one regular expression for whole names.

    Raises UserError on targets that the UNet has none of, or that cannot be adapted.
    """
    for key, value in (("lora_rank", rank), ("lora_alpha", alpha)):
        if value < 1:
            raise UserError(f"policy.{key}={value} must be at least 1, or the adapters add nothing.")
    which = targets if isinstance(targets, str) else list(targets)
    if not which:
        raise UserError(f"policy.lora_targets={which} names no module of the UNet; {ATTENTION}")
    names = [f".{name}" for name, _ in unet.named_modules()]
    for target in [] if isinstance(which, str) else which:
        if not any(name.endswith(f".{target}") for name in names):
            raise UserError(f"policy.lora_targets: the UNet has no module that ends in {target}; {ATTENTION}")
    try:
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=which, init_lora_weights="gaussian"))
    except ValueError as error:
        raise UserError(f"policy.lora_targets={which} cannot be adapted ({first_line(error)}); {ATTENTION}") from error
