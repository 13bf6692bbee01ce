"""Joint rates: pictures that every reward agrees to be better, or worse, than the base's."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor


def joint_rates(scores: Mapping[str, Float[Tensor, " n"]], base: Mapping[str, Float[Tensor, " n"]]) -> dict[str, float]:
    """`joint_domination` and `joint_collapse`: shares of pictures that gain, and that lose, under all rewards at once.

    Against the base picture of the same prompt and seed (2605.13155). A tie under one reward is neither. A hack that
    pleases one reward alone shows in a domination far below that reward's win rate. Empty without a reward.
    """
    if not scores:
        return {}
    differences = torch.stack([scores[name] - base[name] for name in scores])
    return {
        "joint_domination": (differences > 0).all(0).float().mean().item(),
        "joint_collapse": (differences < 0).all(0).float().mean().item(),
    }
