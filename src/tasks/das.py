"""DAS (Kim et al. 2025, arXiv 2501.05803): sequential Monte Carlo towards the base tilted by a reward.

`python -m src.run +experiment=das train_reward=hps`. P particles a picture seek p(x_0) exp(r(x_0) / alpha). x_i is a
state after i of T steps, v_i = r(predicted x_0 of x_i) / alpha, v_T that of x_0 itself, lambda_i a temperature:

- proposal: x_{i+1} = mu_i + sigma_i z + sigma_i^2 lambda_{i+1} grad v_i, with the mean and standard deviation of the
  base's step, and the gradient taken through decoder and network;
- weights (eq. 14): log w += log p(x_{i+1} | x_i) - log q(x_{i+1} | x_i) + lambda_{i+1} v_{i+1} - lambda_i v_i, summed
  over latent dimensions;
- resampling (SSP) where the effective sample size (sum w)^2 / sum w^2 falls under a share of P;
- tempering: lambda_i = min((1 + gamma)^i - 1, 1), and lambda_T = 1;
- the picture is the particle of the greatest final weight.

The authors sample from a DDIM chain of eta 1, last step included, which is what the policy is. What differs: with
`num_steps` steps, 10 in the miniature world and 100 there, a step and what the gradient moves in it are larger; after
resampling the authors' code goes on with potentials and gradients of the particles that were there before, where they
are the survivors' here; a score or a picture that is no number stops the run, where it is taken for 0 there; and alpha
is in base sd.

Cost: P (T + 1) reward queries a picture, P T of them with a gradient. The KL from the base has no closed form, and none
is given: log w tells of the tilted distribution, which a few particles do not reach.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from omegaconf import DictConfig
from torch import Tensor

from src.errors import UserError
from src.policy.diffusion import DiffusionPolicy
from src.seeding import RESAMPLING_STREAM, seed_of
from src.tasks import control
from src.tasks.control import Control, Latents, Scorer, Setting, counts, repeated, streams
from src.tasks.members import numbers
from src.tasks.outcome import Row
from src.types import Conditioning

TEMPERED = 0.87  # share of the steps after which lambda is 1 by default: gamma = 0.008 of the authors' 100 steps


def run(composed: DictConfig) -> Row:
    """The whole control; returns its last row."""
    return control.opened(composed, "das", with_particles)


def with_particles(cfg: dict[str, Any], folder: Path) -> Row:
    """What is left of DAS's run; returns the last row."""
    return control.run(cfg, folder, DAS)


class DAS(Control):
    """Particles that follow the reward's gradient, and are weighted for it.

    Args:
        particles: P; several make a curve over the cost.
        alpha: temperature of the reward, base sd of the reward a nat; several make a curve at one cost.
        gamma: of tempering; null for lambda = 1 after 87% of the steps, as gamma 0.008 does with the authors' 100.
        ess_threshold: share of P under which the effective sample size asks for resampling; 0 for never.
    """

    needs_gradient = True

    def __init__(self, particles: Any, alpha: Any, gamma: float | None = None, ess_threshold: float = 0.5):
        self.particles = counts(particles, "das.particles")
        self.alpha = sorted(numbers(alpha, "das.alpha"), reverse=True)
        if not self.alpha or self.alpha[-1] <= 0:
            raise UserError(f"das.alpha={alpha}: a temperature is above 0; give some, such as das.alpha=1,0.3,0.1.")
        if len(self.particles) > 1 and len(self.alpha) > 1:
            raise UserError("das: one curve varies either das.particles or das.alpha; give one number for the other.")
        if gamma is not None and gamma <= 0:
            raise UserError(f"das.gamma={gamma} must be above 0, or null for what fits the number of steps.")
        if not 0 <= ess_threshold <= 1:
            raise UserError(f"das.ess_threshold={ess_threshold} lies outside 0 to 1: it is a share of the particles.")
        self.gamma, self.ess_threshold = gamma, ess_threshold

    def settings(self, num_steps: int, queries: int) -> list[Setting]:
        found = []
        for p, alpha in ((p, alpha) for p in self.particles for alpha in self.alpha):
            columns: Row = {"reward_gradients": p * num_steps * queries, "das/particles": p, "das/alpha": alpha}
            label = f"P = {p}" if len(self.particles) > 1 else f"alpha = {alpha:g}"
            found.append(Setting(label, p * (num_steps + 1) * queries, columns, {"particles": p, "alpha": alpha}))
        return found

    def width(self, particles: int, alpha: float) -> int:
        return particles

    def temperatures(self, num_steps: int) -> list[float]:
        """lambda before the first step, and after each."""
        gamma = self.gamma or 2 ** (1 / (TEMPERED * num_steps)) - 1
        return [min((1 + gamma) ** i - 1, 1.0) for i in range(num_steps)] + [1.0]

    def draw(
        self, policy: DiffusionPolicy, reward: Scorer, prompts: list[str], seeds: list[int], **options: Any
    ) -> Latents:
        x_0, log_w = self.particles_of(policy, reward, prompts, seeds, **options)
        return x_0[torch.arange(len(seeds), device=x_0.device), log_w.argmax(1)]

    @torch.no_grad()
    def particles_of(
        self,
        policy: DiffusionPolicy,
        reward: Scorer,
        prompts: list[str],
        seeds: list[int],
        particles: int,
        alpha: float,
    ) -> tuple[Float[Tensor, "b p c h w"], Float[Tensor, "b p"]]:
        """x_0 of all particles, and their log-weights since they were last resampled."""
        names, noise = repeated(prompts, particles), policy.noise(streams(seeds, particles, self.seed))
        told, lambdas, scale = policy.encode_prompts(names), self.temperatures(policy.num_steps), alpha * reward.unit
        x_t, before = noise[:, 0].clone(), torch.zeros(len(names), device=noise.device)
        log_w = torch.zeros(len(seeds), particles, device=noise.device)
        for i, t in enumerate(policy.timesteps.unsqueeze(1).expand(-1, len(names))):
            output, value, gradient = look_ahead(policy, reward, scale, x_t, t, told, names)
            log_w += (lambdas[i] * value - before).view_as(log_w)
            parents, log_w = resampled(log_w, self.ess_threshold, [seed_of(s, i, RESAMPLING_STREAM) for s in seeds])
            x_t, output, value, gradient = (table[parents] for table in (x_t, output, value, gradient))
            mean, std = policy.step_of(output, x_t, t)
            z, shift = noise[:, i + 1], std**2 * (lambdas[i + 1] * gradient)
            x_t, before = mean + std * z + shift, lambdas[i] * value
            moved = torch.where(std > 0, shift / std, 0.0)  # a step without noise is the base's
            log_w += log_ratio(z, moved).view_as(log_w)
        final = torch.cat([reward(policy.decode(x), n) for x, n, *_ in parts_of(policy, x_t, names)]) / scale
        log_w += (final - before).view_as(log_w)
        return x_t.unflatten(0, (len(seeds), particles)), log_w


def look_ahead(
    policy: DiffusionPolicy,
    reward: Scorer,
    scale: float,
    x_t: Latents,
    t: Tensor,
    told: Conditioning,
    prompts: list[str],
) -> tuple[Latents, Float[Tensor, " b"], Latents]:
    """The network's output, v = r(predicted x_0) / scale, and the gradient of v with respect to x_t."""
    found = []
    for x, names, step, states in parts_of(policy, x_t, prompts, t, told):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            output = policy.predict(x, step, states)
            value = reward(policy.decode(policy.predicted_clean(output, x, step)), names, differentiable=True) / scale
            (gradient,) = torch.autograd.grad(value.sum(), x, materialize_grads=True)
        found.append((output.detach(), value.detach(), gradient))
    output, value, gradient = (torch.cat(column) for column in zip(*found, strict=True))
    return output, value, gradient


def parts_of(policy: DiffusionPolicy, x_t: Latents, prompts: list[str], *others: Any) -> list[tuple[Any, ...]]:
    """Rows of latents with their prompts and others, `sampling_batch` at a time."""
    size = policy.sampling_batch
    names = [prompts[i : i + size] for i in range(0, len(prompts), size)]
    return list(zip(x_t.split(size), names, *(other.split(size) for other in others), strict=True))


def log_ratio(z: Latents, shift: Latents) -> Float[Tensor, " b"]:
    """log p - log q of mu + sigma (z + shift), drawn from q = N(mu + sigma shift, sigma^2), under p = N(mu, sigma^2).

    That is (|z|^2 - |z + shift|^2) / 2, without the two large terms that cancel.
    """
    return -(shift * (z + shift / 2)).sum((1, 2, 3))


def resampled(log_w: Float[Tensor, "b p"], threshold: float, seeds: list[int]) -> tuple[Tensor, Float[Tensor, "b p"]]:
    """Rows of the particles that go on, and their log-weights: equal ones where a picture's were resampled."""
    b, p = log_w.shape
    log_w = log_w.log_softmax(1)
    weights = log_w.double().exp().cpu().numpy()
    parents = np.tile(np.arange(p), (b, 1))
    for k in range(b):
        if 1 / (weights[k] ** 2).sum() < threshold * p:
            parents[k] = ssp(weights[k], np.random.default_rng(seeds[k]))
            log_w[k] = -math.log(p)
    rows = torch.from_numpy(parents + np.arange(b)[:, None] * p).flatten()
    return rows.to(log_w.device), log_w


def ssp(weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Parents of as many children as there are weights: SSP resampling (Gerber et al. 2019, arXiv 1708.02230).

    A particle of weight w has floor(P w) children or one more, P w in the mean. The fractions are settled two by two:
    either takes from the other what makes one of them whole, with chances that leave both means as they are.
    """
    p = len(weights)
    wanted = p * weights / weights.sum()
    children = np.floor(wanted).astype(int)
    rest, open_one = wanted - children, 0
    for other in range(1, p):
        a, b = rest[open_one], rest[other]
        if a + b < 1:
            winner, loser = (open_one, other) if rng.random() * (a + b) < a else (other, open_one)
            rest[winner], rest[loser], open_one = a + b, 0.0, winner
        else:
            whole, left = (open_one, other) if rng.random() * (2 - a - b) < 1 - b else (other, open_one)
            children[whole] += 1
            rest[left], open_one = a + b - 1, left
    children[open_one] += p - children.sum()  # what is left is whole, but for rounding
    return np.arange(p).repeat(children)
