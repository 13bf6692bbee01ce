"""Flow matching as a Gaussian policy: stochastic steps that keep the marginals of the flow's ODE.

x_t = (1 - t) x_0 + t noise, the network gives v = noise - x_0, and t falls from 1 to 0; dt = t' - t < 0. The ODE is
x' = x + v dt. For any sigma the SDE

    x' = x + [v + sigma^2 / (2 t) (x + (1 - t) v)] dt + sigma sqrt(-dt) eps

has the same marginals as dt goes to 0, for x + (1 - t) v is the predicted noise and -noise / t the score (Flow-GRPO,
2505.05470, eq. 9; DanceGRPO, 2505.07818). A large step leaves pictures noisier than the ODE's, and Flow-GRPO's sigma
does so near t = 1 however many steps there are, up to a tenth of the variance, which later steps take back. CPS
(2509.05952) draws as much noise as it takes out, as DDIM does: the noise level is right after every step. But every
step replaces the same share of it, so that it is meant for few steps, and keeps no marginals as they grow.

- `flow_grpo`: sigma = a sqrt(t / (1 - t)), a = 0.7; at t = 1, where that is infinite, the denominator is of the next t.
- `constant`: sigma = a (DanceGRPO), 0.3.
- `cps`: x' = (1 - t') x_0 + sqrt(t'^2 - s^2) noise + s eps, x_0 and noise as predicted, s = t' sin(a pi / 2), a = 0.8.

Where the public code differs: log-probabilities of CPS are the Gaussians' own (there: -|x' - mean|^2, without
1 / (2 s^2), which tempers the ratio), and the last step, which nobody trains, draws no noise here.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from src.errors import UserError
from src.policy.gaussian import Latents, PerSample, Std, expanded
from src.policy.sampler import Sampler, Scheduler, Times

SDE = Literal["flow_grpo", "constant", "cps"]


class Flow(Sampler):
    """Stochastic steps along the times of diffusers' FlowMatchEulerDiscreteScheduler; `level` is a.

    All steps but the last are stochastic. Raises UserError on another scheduler.
    """

    def __init__(self, scheduler: Scheduler, num_steps: int, level: float, sde: SDE, option: str):
        if sde == "cps" and level > 1:
            raise UserError(f"policy.eta={level}: policy.sde=cps takes out all noise at 1; give a number up to 1.")
        self.times, self.sde = flow_times(scheduler, num_steps, option), sde
        count = scheduler.config.num_train_timesteps
        able = num_steps - (sde == "cps")  # whose noise is a share of that at the time after the step, at last 0
        super().__init__(self.times[:-1] * count, level, count, num_steps - 1, able)
        if num_steps == 1:
            raise UserError("num_steps=1: the last step of flow matching draws no noise, so that it takes 2 at least.")

    prediction_type = "flow"

    def at(self, t: Times) -> tuple[PerSample, PerSample]:
        """Time before and after the steps from these timesteps."""
        slots, times = self.slots(t), self.times.to(t.device)
        return times[slots], times[slots + 1]

    def step(self, output: Latents, x_t: Latents, t: Times) -> tuple[Latents, Std]:
        now, then = self.at(t)
        level = torch.as_tensor(self.levels(t), device=t.device).expand_as(now)
        if self.sde == "cps":
            return cps_step(output, x_t, now, then, level)
        sigma = level
        if self.sde == "flow_grpo":
            sigma = level * flow_grpo_sigma(now, self.times[1].to(t.device))
        return sde_step(output, x_t, now, then, sigma)

    def clean(self, output: Latents, x_t: Latents, t: Times) -> Latents:
        return x_t - expanded(self.at(t)[0], x_t) * output

    def noise(self, output: Latents, x_t: Latents, t: Times) -> Latents:
        return x_t + expanded(1 - self.at(t)[0], x_t) * output

    def noised(self, x_0: Latents, t: Times, noise: Latents) -> Latents:
        """(1 - t) x_0 + t noise."""
        now = expanded(self.at(t)[0], x_0)
        return (1 - now) * x_0 + now * noise


def flow_grpo_sigma(t: PerSample, second: Float[Tensor, ""]) -> PerSample:
    """sqrt(t / (1 - t)), and at t = 1 sqrt(1 / (1 - second)), `second` being the time after the first step."""
    return (t / (1 - torch.where(t == 1, second, t))).sqrt()


def sde_step(v: Latents, x_t: Latents, t: PerSample, t_next: PerSample, sigma: PerSample) -> tuple[Latents, Std]:
    """Mean and standard deviation of Euler and Maruyama's step of the SDE; at sigma 0 that of the ODE."""
    t, dt, sigma = (expanded(value, x_t) for value in (t, t_next - t, sigma))
    v, x_t = v.float(), x_t.float()
    pull = sigma**2 / (2 * t)
    return x_t * (1 + pull * dt) + v * (1 + pull * (1 - t)) * dt, sigma * (-dt).sqrt()


def cps_step(v: Latents, x_t: Latents, t: PerSample, t_next: PerSample, level: PerSample) -> tuple[Latents, Std]:
    """Mean and standard deviation of a coefficients-preserving step; at level 0 that of the ODE."""
    t, t_next, level = (expanded(value, x_t) for value in (t, t_next, level))
    v, x_t = v.float(), x_t.float()
    clean, noise = x_t - t * v, x_t + (1 - t) * v
    angle = level * math.pi / 2
    return (1 - t_next) * clean + t_next * angle.cos() * noise, t_next * angle.sin()


def flow_times(scheduler: Scheduler, num_steps: int, option: str) -> Float[Tensor, " t1"]:
    """Times from 1 to 0 as the scheduler spaces them, its shift included.

    Raises UserError on a scheduler that has none, or that changes them with the picture's size.
    """
    name, config = type(scheduler).__name__, scheduler.config
    if name != "FlowMatchEulerDiscreteScheduler":
        raise UserError(
            f"{option}: its scheduler is a {name}; give a pipeline with a FlowMatchEulerDiscreteScheduler, which has "
            "the times of flow matching."
        )
    for key in ("use_dynamic_shifting", "invert_sigmas"):
        if config.get(key):
            raise UserError(f"{option}: its scheduler has {key}, which policies do not follow; set it to false.")
    if num_steps < 1:
        raise UserError(f"num_steps={num_steps} must be at least 1.")
    own = type(scheduler).from_config(config)
    own.set_timesteps(num_steps)
    times = own.sigmas.float()
    if not (times.diff() < 0).all() or times[0] > 1 or times[-1] != 0:
        raise UserError(f"num_steps={num_steps}: the times of {option}'s scheduler do not fall from 1 to 0.")
    return times
