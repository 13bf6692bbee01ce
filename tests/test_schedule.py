"""The noise schedule of any diffusion scheduler, and DDIM's steps through it, each with noise."""

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, SchedulerMixin
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers

from src.errors import UserError
from src.policy import ddim
from src.policy.gaussian import gaussian_log_prob
from src.policy.schedule import DDIMSchedule, ddim_schedule


def is_scheduler(member: object) -> bool:
    """Also not one of the placeholders for what needs a package that is not here."""
    return isinstance(member, type) and issubclass(member, SchedulerMixin) and member is not SchedulerMixin


SD = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "skip_prk_steps": True,
}
ALL = sorted(name for name in dir(diffusers) if is_scheduler(getattr(diffusers, name)))
SOLVERS = [each.name for each in KarrasDiffusionSchedulers if each.name in ALL and not each.name.startswith("EDM")]


def schedule_of(name: str = "DDIMScheduler", steps: int = 50, **changes) -> DDIMSchedule:
    return ddim_schedule(getattr(diffusers, name).from_config(SD | changes), steps, "policy.path=x")


def step_std(schedule: DDIMSchedule) -> torch.Tensor:
    zeros = torch.zeros(len(schedule.timesteps), 1, 1, 1)
    bars = schedule.alpha_bars(schedule.timesteps)
    return ddim.ddim_step(zeros, zeros, *bars, 1.0, schedule.prediction_type)[1].flatten()


def same(a: DDIMSchedule, b: DDIMSchedule) -> bool:
    bars = [torch.stack(each.alpha_bars(each.timesteps)) for each in (a, b)]
    return torch.equal(a.timesteps, b.timesteps) and torch.equal(*bars) and a.prediction_type == b.prediction_type


@pytest.mark.parametrize("name", SOLVERS)
def test_every_diffusion_scheduler_gives_its_noise_schedule(name):
    assert same(schedule_of(name), schedule_of())


@pytest.mark.parametrize("name", ALL)
def test_any_other_is_taken_or_named(name):
    try:
        scheduler = getattr(diffusers, name)()
    except TypeError:
        pytest.skip("has no default configuration")
    try:
        schedule = ddim_schedule(scheduler, 10, "policy.path=x")
    except UserError as error:
        assert name in str(error) and "\n" not in str(error)
    else:
        torch.testing.assert_close(schedule.before, scheduler.alphas_cumprod.float(), atol=1e-6, rtol=0)
        assert (step_std(schedule) > 0).all()


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 25, 30, 49, 50, 100, 333, 500, 600, 666])
def test_timesteps_are_those_of_diffusers_ddim(spacing, steps):
    theirs = DDIMScheduler.from_config(SD | {"timestep_spacing": spacing})
    theirs.set_timesteps(steps)
    ours = schedule_of(steps=steps, timestep_spacing=spacing)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    before, after = ours.alpha_bars(ours.timesteps)
    assert torch.equal(before, theirs.alphas_cumprod[theirs.timesteps])
    previous = theirs.timesteps - 1000 // steps
    expected = [theirs.alphas_cumprod[t] if t >= 0 else theirs.final_alpha_cumprod for t in previous.tolist()]
    assert torch.equal(after, torch.stack(expected))


@pytest.mark.parametrize(
    ("name", "changes", "ends"),
    [
        ("DDIMScheduler", {"timestep_spacing": "linspace"}, (999, 20)),
        ("DPMSolverMultistepScheduler", {"timestep_spacing": "linspace", "use_karras_sigmas": True}, (999, 20)),
        ("EulerDiscreteScheduler", {"timestep_spacing": "linspace", "final_sigmas_type": "sigma_min"}, (999, 20)),
        ("DDIMScheduler", {"set_alpha_to_one": True}, (981, 1)),
        ("DDIMScheduler", {"steps_offset": 0}, (981, 1)),
        ("DDIMScheduler", {"timestep_spacing": "trailing", "set_alpha_to_one": True}, (999, 19)),
        ("DDPMScheduler", {"beta_schedule": "sigmoid"}, (981, 1)),  # which DDIM of diffusers has not
        ("DDIMScheduler", {"trained_betas": np.linspace(1e-4, 0.02, 1000).tolist()}, (981, 1)),
        ("DDIMScheduler", {"prediction_type": "sample"}, (981, 1)),
        ("DDIMScheduler", {"num_train_timesteps": 100}, (99, 1)),
    ],
)
def test_every_step_has_noise_and_the_last_ends_at_the_first_alpha_bar(name, changes, ends):
    schedule = schedule_of(name, 50, **changes)
    _, after = schedule.alpha_bars(schedule.timesteps)
    assert (schedule.timesteps[0].item(), schedule.timesteps[-1].item()) == ends
    assert len(schedule.timesteps) == 50 and (step_std(schedule) > 0).all()
    assert after[-1] == schedule.before[0]
    assert torch.equal(schedule.before, getattr(diffusers, name).from_config(SD | changes).alphas_cumprod)


def test_linspace_steps_follow_one_another():
    schedule = schedule_of(steps=7, timestep_spacing="linspace")
    assert schedule.timesteps.tolist() == [999, 856, 714, 571, 428, 285, 143]  # 999 k / 7, rounded
    before, after = schedule.alpha_bars(schedule.timesteps)
    assert torch.equal(before[1:], after[:-1])


def test_no_step_begins_where_none_was_asked_for():
    schedule = schedule_of(steps=2, timestep_spacing="trailing")
    assert schedule.alpha_bars(torch.tensor([998]))[1].isnan().all()


@pytest.mark.parametrize("steps", [61, 103, 446])
def test_trailing_timesteps_are_as_many_as_asked_for(steps):
    """diffusers' arange gives one more for these, by a rounding error, which begins at -1."""
    schedule = schedule_of(steps=steps, timestep_spacing="trailing")
    assert len(schedule.timesteps) == steps and schedule.timesteps[-1] > 0


@pytest.mark.parametrize(
    ("steps", "spacing", "most"), [(1000, "leading", 999), (1000, "trailing", 666), (667, "trailing", 666),
    (1000, "linspace", 999), (5000, "leading", 999), (0, "leading", 999)],
)  # fmt: skip
def test_too_many_steps_are_told_with_how_many_there_are(steps, spacing, most):
    with pytest.raises(
        UserError, match=rf"num_steps={steps}: .* {spacing} timesteps of 1000 give that to 1..{most} st"
    ):
        schedule_of(steps=steps, timestep_spacing=spacing)
    assert (step_std(schedule_of(steps=most, timestep_spacing=spacing)) > 0).all()


ZERO = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "PNDMScheduler"]
)
@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_the_first_step_from_zero_snr_is_drawn_about_the_predicted_picture(name, prediction):
    """alpha_bar 0: x_t is noise, v = -x_0, the mean is sqrt(a') x_0 and the variance 1 - a' (eta 1)."""
    schedule = schedule_of(name, 10, prediction_type=prediction, **ZERO)
    before, after = schedule.alpha_bars(schedule.timesteps[:1])
    assert before.item() == 0
    output, x_t = torch.randn(2, 1, 4, 3, 3)
    mean, std = ddim.ddim_step(output, x_t, before, after, 1.0, prediction)
    clean = output if prediction == "sample" else -output
    torch.testing.assert_close(mean, after.sqrt() * clean, atol=3e-3, rtol=0)  # 1 - a' - std^2 is 0 but for rounding
    assert std.item() == pytest.approx((1 - after.item()) ** 0.5, rel=1e-6)
    assert gaussian_log_prob(mean + std, mean, std).isfinite().all()


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_predicted_noise_tells_nothing_at_zero_snr(name):
    with pytest.raises(UserError, match="zero terminal SNR"):
        schedule_of(name, **ZERO)
    assert schedule_of(name, **ZERO | {"timestep_spacing": "leading"}).timesteps[0] == 981  # where a signal is left


def test_defaults_are_those_of_the_schedulers_own_class():
    """LCM's are Stable Diffusion's betas, DDIM's are not."""
    lcm, plain = (getattr(diffusers, name)() for name in ("LCMScheduler", "DDIMScheduler"))
    assert torch.equal(ddim_schedule(lcm, 10, "x").before, lcm.alphas_cumprod)
    assert not torch.allclose(lcm.alphas_cumprod, plain.alphas_cumprod)
