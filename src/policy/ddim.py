"""DDIM as a Gaussian policy (Song et al. 2021, eq. 12 and 16): p(x_{t-1} | x_t, c) = N(mean, std^2 I), float32."""

from src.policy.gaussian import Latents, PerSample, Std, expanded
from src.policy.sampler import Sampler, Scheduler, Times
from src.policy.schedule import ddim_schedule


class DDIM(Sampler):
    """DDIM's steps through the noise schedule of a diffusers scheduler; `level` is eta.

    At 1 a step has the noise of DDPM, at 0 none. Raises UserError where the scheduler or the number of steps does not
    fit; see `ddim_schedule`.
    """

    def __init__(self, scheduler: Scheduler, num_steps: int, level: float, option: str):
        self.schedule = ddim_schedule(scheduler, num_steps, option)
        super().__init__(self.schedule.timesteps, level, len(self.schedule.before), num_steps, num_steps)

    @property
    def prediction_type(self) -> str:
        return self.schedule.prediction_type

    def step(self, output: Latents, x_t: Latents, t: Times) -> tuple[Latents, Std]:
        return ddim_step(output, x_t, *self.schedule.alpha_bars(t), self.levels(t), self.prediction_type)

    def clean(self, output: Latents, x_t: Latents, t: Times) -> Latents:
        return predicted_clean(output, x_t, self.schedule.alpha_bars(t)[0], self.prediction_type)[0]

    def noise(self, output: Latents, x_t: Latents, t: Times) -> Latents:
        return predicted_clean(output, x_t, self.schedule.alpha_bars(t)[0], self.prediction_type)[1]

    def noised(self, x_0: Latents, t: Times, noise: Latents) -> Latents:
        """sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) noise."""
        alpha_bar = expanded(self.schedule.alpha_bars(t)[0], x_0)
        return alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * noise


def predicted_clean(
    output: Latents, x_t: Latents, alpha_bar: PerSample, prediction_type: str
) -> tuple[Latents, Latents]:
    """(predicted x_0, predicted noise) from the network's output. Raises ValueError on an unknown parametrisation."""
    signal = expanded(alpha_bar.sqrt(), x_t)
    noise = expanded((1 - alpha_bar).sqrt(), x_t)
    if prediction_type == "epsilon":
        return (x_t - noise * output) / signal, output
    if prediction_type == "v_prediction":
        return signal * x_t - noise * output, signal * output + noise * x_t
    if prediction_type == "sample":
        return output, (x_t - signal * output) / noise
    raise ValueError(f"unknown prediction_type {prediction_type!r}")


def ddim_step(
    output: Latents,
    x_t: Latents,
    alpha_bar: PerSample,
    alpha_bar_prev: PerSample,
    eta: float | PerSample,
    prediction_type: str,
) -> tuple[Latents, Std]:
    """Mean and standard deviation of x_{t-1}. `eta` 1 gives DDPM's posterior variance, 0 a deterministic step."""
    x_0, epsilon = predicted_clean(output.float(), x_t.float(), alpha_bar, prediction_type)
    variance = (1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)
    std = eta * variance.clamp(min=0).sqrt()
    direction = (1 - alpha_bar_prev - std**2).clamp(min=0).sqrt()
    mean = expanded(alpha_bar_prev.sqrt(), x_t) * x_0 + expanded(direction, x_t) * epsilon
    return mean, expanded(std, x_t)
