"""One DDIM step as a Gaussian policy (Song et al. 2021, eq. 12 and 16): pure functions, float32.

p(x_{t-1} | x_t, c) = N(mean, std^2 I). The log-probability is the *mean* over latent dimensions, as in the code of
DDPO and TDPO, because their clip ranges are relative to it; KL divergences are true ones, summed over dimensions.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

Latents = Float[Tensor, "b c h w"]
PerSample = Float[Tensor, " b"]


def predicted_clean(
    output: Latents, x_t: Latents, alpha_bar: PerSample, prediction_type: str
) -> tuple[Latents, Latents]:
    """(predicted x_0, predicted noise) from the network's output. Raises ValueError on an unknown parametrisation."""
    signal = _expand(alpha_bar.sqrt(), x_t)
    noise = _expand((1 - alpha_bar).sqrt(), x_t)
    if prediction_type == "epsilon":
        return (x_t - noise * output) / signal, output
    if prediction_type == "v_prediction":
        return signal * x_t - noise * output, signal * output + noise * x_t
    if prediction_type == "sample":
        return output, (x_t - signal * output) / noise
    raise ValueError(f"unknown prediction_type {prediction_type!r}")


def ddim_step(
    output: Latents, x_t: Latents, alpha_bar: PerSample, alpha_bar_prev: PerSample, eta: float, prediction_type: str
) -> tuple[Latents, Float[Tensor, "b 1 1 1"]]:
    """Mean and standard deviation of x_{t-1}. `eta` 1 gives DDPM's posterior variance, 0 a deterministic step."""
    x_0, epsilon = predicted_clean(output.float(), x_t.float(), alpha_bar, prediction_type)
    variance = (1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)
    std = eta * variance.clamp(min=0).sqrt()
    direction = (1 - alpha_bar_prev - std**2).clamp(min=0).sqrt()
    mean = _expand(alpha_bar_prev.sqrt(), x_t) * x_0 + _expand(direction, x_t) * epsilon
    return mean, _expand(std, x_t)


def gaussian_log_prob(x: Latents, mean: Latents, std: Float[Tensor, "b 1 1 1"]) -> PerSample:
    """log N(x; mean, std^2), averaged over latent dimensions."""
    z = (x.float() - mean) / std
    return (-0.5 * z**2 - torch.log(std) - 0.5 * math.log(2 * math.pi)).mean((1, 2, 3))


def gaussian_kl(
    mean: Float[Tensor, "*rows c h w"], reference: Float[Tensor, "*rows c h w"], std: Float[Tensor, "*#rows 1 1 1"]
) -> Float[Tensor, "*rows"]:
    """KL(N(mean, std^2) || N(reference, std^2)) = |mean - reference|^2 / (2 std^2) in nats, summed over dimensions."""
    return (((mean - reference) / std) ** 2).sum((-3, -2, -1)) / 2


def _expand(value: PerSample, like: Latents) -> Float[Tensor, "b 1 1 1"]:
    return value.view(-1, *[1] * (like.ndim - 1))
