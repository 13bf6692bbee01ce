"""Which steps a trajectory takes through the noise schedule that a network was trained with.

The policy takes the noise schedule of any diffusion scheduler of diffusers (DDIM, DDPM, PNDM, Euler, DPM-Solver,
UniPC, LCM, ...) and samples by DDIM, whatever that scheduler's own solver is. A step has a density only where it adds
noise, so every step does: the last one ends at the schedule's first alpha_bar, never at a clean picture.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from jaxtyping import Float, Int
from torch import Tensor

from src.errors import UserError

PREDICTIONS = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True)
class DDIMSchedule:
    """The timesteps of a trajectory, and alpha_bar (cumulative signal power) before and after the step from each.

    Args:
        timesteps: descending, as the network is told them.
        before, after: by timestep; NaN where no step begins.
        prediction_type: what the network gives, `epsilon`, `v_prediction` or `sample`.
    """

    timesteps: Int[Tensor, " t"]
    before: Float[Tensor, " n"]
    after: Float[Tensor, " n"]
    prediction_type: str

    def alpha_bars(self, timesteps: Int[Tensor, " b"]) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """alpha_bar before and after the step from each timestep, where the timesteps are."""
        return self.before.to(timesteps.device)[timesteps], self.after.to(timesteps.device)[timesteps]


def ddim_schedule(scheduler: Any, num_steps: int, option: str) -> DDIMSchedule:
    """DDIM's steps through the noise schedule of a diffusers scheduler.

    `leading` timesteps (with an offset of 1 at least) and `trailing` ones are diffusers'. `linspace` divides the way
    from the last timestep to timestep 0 evenly, and the steps end there.

    Args:
        scheduler: of diffusers.
        num_steps: of a trajectory.
        option: what error messages call the pipeline.

    Raises UserError on a scheduler that has no noise schedule or needs more than that, and where a trajectory of
    `num_steps` has no noise in every step.
    """
    alpha_bars = _noise_schedule(scheduler, option)
    kept = {"beta_schedule": "linear", "trained_betas": None}  # not used; diffusers has schedules that its DDIM has not
    config = DDIMScheduler.from_config(scheduler.config, **kept).config
    spacing, offset, count = config.timestep_spacing, max(1, config.steps_offset), len(alpha_bars)
    if spacing not in ("leading", "trailing", "linspace"):
        raise UserError(
            f"{option}: its scheduler's timestep_spacing={spacing} is none of leading, trailing, linspace: "
            "correct scheduler/scheduler_config.json."
        )
    if not _has_noise(num_steps, count, spacing, offset):
        most = max(n for n in range(1, count) if _has_noise(n, count, spacing, offset))
        raise UserError(
            f"num_steps={num_steps}: every step needs a timestep and noise of its own, and {spacing} timesteps of "
            f"{count} give that to 1..{most} steps."
        )
    timesteps, targets = _steps(num_steps, count, spacing, offset)
    after = torch.full_like(alpha_bars, torch.nan)
    after[timesteps] = alpha_bars[torch.from_numpy(targets.clip(min=0))]
    schedule = DDIMSchedule(torch.from_numpy(timesteps), alpha_bars, after, scheduler.config.prediction_type)
    _require_use(schedule, option)
    return schedule


def _noise_schedule(scheduler: Any, option: str) -> Float[Tensor, " n"]:
    """alpha_bar by training timestep. Raises UserError where the scheduler has none, or more than one needs."""
    config, name = scheduler.config, type(scheduler).__name__
    alpha_bars, prediction = getattr(scheduler, "alphas_cumprod", None), config.get("prediction_type")
    fitting = "give a pipeline with the scheduler of a diffusion model, such as DDIM, DDPM, PNDM, Euler or DPM-Solver."
    if alpha_bars is None or config.get("use_flow_sigmas") or prediction == "flow_prediction":
        raise UserError(f"{option}: its {name} has no noise schedule of a diffusion (alphas_cumprod); {fitting}")
    if config.get("timestep_type") == "continuous":
        raise UserError(f"{option}: its {name} tells the network continuous timesteps (EDM's noise levels); {fitting}")
    if prediction not in PREDICTIONS:
        raise UserError(f"{option}: prediction_type={prediction} of its {name} is none of {', '.join(PREDICTIONS)}.")
    if config.get("thresholding"):
        raise UserError(
            f"{option}: its {name} thresholds the predicted picture, which is meant for pixels and not for latents: "
            "set thresholding to false in scheduler/scheduler_config.json."
        )
    if len(alpha_bars) != config.num_train_timesteps:
        raise UserError(
            f"{option}: the noise schedule of its {name} has {len(alpha_bars)} timesteps (trained_betas), and "
            f"num_train_timesteps is {config.num_train_timesteps}; correct scheduler/scheduler_config.json."
        )
    exact = torch.cumprod(1 - scheduler.betas, 0)  # at a terminal SNR of zero DPM-Solver and Euler put 2^-24 for the 0
    if not torch.allclose(exact, alpha_bars, atol=1e-6, rtol=0):
        return alpha_bars.float()
    if config.get("rescale_betas_zero_snr") and exact[-1] > 0:  # which PNDM and Heun do not know; the network does
        exact = torch.cumprod(1 - rescale_zero_terminal_snr(scheduler.betas), 0)
    return exact


def _steps(num_steps: int, count: int, spacing: str, offset: int) -> tuple[np.ndarray, np.ndarray]:
    """The timesteps that steps begin at, descending, and those they end at; below 0 stands for 0."""
    if spacing == "linspace":
        way = np.linspace(0, count - 1, num_steps + 1).round()[::-1].astype(np.int64)
        return way[:-1].copy(), way[1:].copy()
    stride = count // num_steps
    if spacing == "leading":
        timesteps = np.arange(num_steps)[::-1] * stride + offset
    else:
        timesteps = np.round(np.arange(count, 0, -count / num_steps)).astype(np.int64)[:num_steps] - 1
    return timesteps, timesteps - stride


def _has_noise(num_steps: int, count: int, spacing: str, offset: int) -> bool:
    """Whether each step has a timestep of its own, and none begins at 0, where the way ends."""
    if not 1 <= num_steps < count:
        return False
    timesteps, _ = _steps(num_steps, count, spacing, offset)
    return bool(len(np.unique(timesteps)) == num_steps and timesteps[0] < count and timesteps[-1] > 0)


def _require_use(schedule: DDIMSchedule, option: str) -> None:
    """Raises UserError on a step without noise, and where the network's first prediction would mean nothing."""
    before, after = schedule.alpha_bars(schedule.timesteps)
    silent = ~((before < after) & (after < 1))  # NaN too
    if silent.any():
        t = schedule.timesteps[silent][0].item()
        raise UserError(
            f"{option}: its noise schedule adds no noise at timestep {t}, and a step without noise has no "
            "log-probability; correct the betas in scheduler/scheduler_config.json."
        )
    if before[0] == 0 and schedule.prediction_type == "epsilon":
        raise UserError(
            f"{option}: at the first timestep of its noise schedule nothing of a picture is left (zero terminal SNR), "
            "so that predicted noise (prediction_type=epsilon) tells none; such a network predicts v_prediction or "
            "sample: correct scheduler/scheduler_config.json."
        )
