"""Gaussian steps of a Markov chain: p(x_next | x_t, c) = N(mean, std^2 I), pure functions in float32.

The log-probability is the *mean* over latent dimensions, as in the code of DDPO, TDPO and Flow-GRPO, because their clip
ranges are relative to it; KL divergences are true ones, summed over dimensions.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

Latents = Float[Tensor, "b c h w"]
PerSample = Float[Tensor, " b"]
Std = Float[Tensor, "b 1 1 1"]


def gaussian_log_prob(x: Latents, mean: Latents, std: Std) -> PerSample:
    """log N(x; mean, std^2), averaged over latent dimensions."""
    z = (x.float() - mean) / std
    return (-0.5 * z**2 - torch.log(std) - 0.5 * math.log(2 * math.pi)).mean((1, 2, 3))


def gaussian_kl(
    mean: Float[Tensor, "*rows c h w"], reference: Float[Tensor, "*rows c h w"], std: Float[Tensor, "*#rows 1 1 1"]
) -> Float[Tensor, "*rows"]:
    """KL(N(mean, std^2) || N(reference, std^2)) = |mean - reference|^2 / (2 std^2) in nats, summed over dimensions."""
    return (((mean - reference) / std) ** 2).sum((-3, -2, -1)) / 2


def expanded(value: PerSample, like: Latents) -> Std:
    """One number a sample [b], as it multiplies latents [b, c, h, w]: [b, 1, 1, 1]."""
    return value.view(-1, *[1] * (like.ndim - 1))
