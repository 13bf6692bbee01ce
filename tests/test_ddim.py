import math

import pytest
import torch
from diffusers import DDIMScheduler

from src.mini.unet import ddim_scheduler
from src.policy import ddim
from src.policy.gaussian import gaussian_kl, gaussian_log_prob
from src.policy.schedule import ddim_schedule

B, SHAPE = 3, (4, 8, 8)


def stable_diffusion_scheduler(prediction_type: str = "epsilon") -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )


def clean_scheduler() -> DDIMScheduler:
    return stable_diffusion_scheduler("sample")


@pytest.mark.parametrize("make", [stable_diffusion_scheduler, ddim_scheduler, clean_scheduler])
@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("steps", [10, 50])
def test_step_equals_diffusers(make, eta, steps):
    scheduler = make()
    scheduler.set_timesteps(steps)
    schedule = ddim_schedule(scheduler, steps, "policy.path=x")
    assert torch.equal(schedule.timesteps, scheduler.timesteps)
    rng = torch.Generator().manual_seed(0)
    for t in scheduler.timesteps:
        output, x_t, noise = (torch.randn(B, *SHAPE, generator=rng) for _ in range(3))
        at, after = schedule.alpha_bars(t.expand(B))
        mean, std = ddim.ddim_step(output, x_t, at, after, eta, schedule.prediction_type)
        without = scheduler.step(output, t, x_t, eta=eta, variance_noise=torch.zeros_like(noise)).prev_sample
        with_noise = scheduler.step(output, t, x_t, eta=eta, variance_noise=noise).prev_sample
        torch.testing.assert_close(mean, without, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mean + std * noise, with_noise, rtol=1e-4, atol=1e-5)
        assert (std > 0).all()


def test_log_prob_equals_torch_normal():
    x, mean = torch.randn(2, B, *SHAPE)
    std = torch.rand(B, 1, 1, 1) + 0.1
    reference = torch.distributions.Normal(mean, std).log_prob(x).mean((1, 2, 3))
    torch.testing.assert_close(gaussian_log_prob(x, mean, std), reference)


def test_log_prob_by_hand():
    # one standard deviation away in every dimension: -1/2 - log std - log(2 pi)/2
    x, mean, std = torch.full((1, 1, 1, 2), 3.0), torch.full((1, 1, 1, 2), 1.0), torch.full((1, 1, 1, 1), 2.0)
    expected = -0.5 - math.log(2) - 0.5 * math.log(2 * math.pi)
    assert gaussian_log_prob(x, mean, std).item() == pytest.approx(expected)


def test_kl_equals_torch_and_is_summed():
    mean, reference = torch.randn(2, B, *SHAPE)
    std = torch.rand(B, 1, 1, 1) + 0.1
    p, q = (torch.distributions.Normal(m, std.expand_as(mean)) for m in (mean, reference))
    expected = torch.distributions.kl_divergence(p, q).sum((1, 2, 3))
    torch.testing.assert_close(gaussian_kl(mean, reference, std), expected)
    assert gaussian_kl(mean, mean, std).eq(0).all()


def test_unknown_parametrisation_is_refused():
    x = torch.zeros(1, *SHAPE)
    with pytest.raises(ValueError, match="prediction_type"):
        ddim.predicted_clean(x, x, torch.tensor([0.5]), "velocity")
