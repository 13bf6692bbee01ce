"""Flow matching's chains: their steps against an independent computation, and what they must keep."""

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

from src.errors import UserError
from src.policy.diffusion import DiffusionPolicy
from src.policy.flow import Flow, flow_grpo_sigma
from src.policy.gaussian import gaussian_kl, gaussian_log_prob
from tests.released import write_sd3
from tests.test_policy import log_probs

KINDS = {"flow_grpo": 0.7, "constant": 0.3, "cps": 0.8}
PROMPTS, SEEDS = ["a cat", "two dogs", "a zebra"], [1, 2, 3]


def sampler_of(sde: str = "flow_grpo", steps: int = 10, level: float | None = None, **scheduler) -> Flow:
    level = KINDS[sde] if level is None else level
    return Flow(FlowMatchEulerDiscreteScheduler(**scheduler), steps, level, sde, "policy.path=x")


def by_hand(sde: str, x: float, v: float, t: float, t_next: float, a: float, second: float) -> tuple[float, float]:
    """Mean and standard deviation in Python's own numbers: from the score, not from the published rearrangement."""
    clean, noise = x - t * v, x + (1 - t) * v
    if sde == "cps":
        s = t_next * math.sin(a * math.pi / 2)
        return (1 - t_next) * clean + math.sqrt(t_next**2 - s**2) * noise, s
    sigma = a if sde == "constant" else a * math.sqrt(t / (1 - (second if t == 1 else t)))
    score, dt = -noise / t, t_next - t
    return x + (v - sigma**2 / 2 * score) * dt, sigma * math.sqrt(-dt)


@pytest.mark.parametrize("sde", KINDS)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_every_step_equals_an_independent_computation(sde, shift):
    sampler, rng = sampler_of(sde, shift=shift), torch.Generator().manual_seed(0)
    times = sampler.times.double().tolist()
    assert times[0] == 1 and times[-1] == 0
    for k, t in enumerate(sampler.timesteps):
        x, v, drawn = torch.randn(3, 2, 1, 2, 2, generator=rng)
        mean, std = sampler.step(v, x, t.expand(2))
        if k == len(sampler) - 1:  # the ODE's
            torch.testing.assert_close(mean, x - times[k] * v)
            assert std.eq(0).all()
            continue
        right = [
            by_hand(sde, *pair, times[k], times[k + 1], KINDS[sde], times[1])
            for pair in zip(x.flatten().tolist(), v.flatten().tolist(), strict=True)
        ]
        torch.testing.assert_close(mean.flatten(), torch.tensor([m for m, _ in right]), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(std.flatten(), torch.full((2,), right[0][1]), atol=1e-6, rtol=1e-5)
        normal = torch.distributions.Normal(mean.double(), std.double())
        expected = normal.log_prob(drawn.double()).mean((1, 2, 3))
        torch.testing.assert_close(gaussian_log_prob(drawn, mean, std).double(), expected, atol=1e-4, rtol=1e-4)


def test_sigma_is_finite_and_as_published():
    t, second = torch.tensor([1.0, 0.5, 0.2, 0.0]), torch.tensor(0.9)
    expected = [math.sqrt(1 / 0.1), 1.0, 0.5, 0.0]  # sqrt(t / (1 - t)); at 1 the numerator stays
    torch.testing.assert_close(flow_grpo_sigma(t, second), torch.tensor(expected))


@pytest.mark.parametrize("sde", KINDS)
def test_without_noise_it_is_diffusers_own_euler(sde):
    sampler = sampler_of(sde, level=0.0, shift=3.0)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(10)
    assert torch.equal(sampler.timesteps, scheduler.timesteps)
    x, v = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps:
        mean, std = sampler.step(v, x, t.expand(2))
        torch.testing.assert_close(mean, scheduler.step(v, t, x, return_dict=False)[0], atol=1e-5, rtol=1e-5)
        assert std.eq(0).all()


def relative_errors(sde: str, steps: int) -> list[tuple[float, float, float]]:
    """(t, error of the mean, relative error of the variance) after each step, of data N(m, s^2), against the ODE's.

    v = E[noise - x_0 | x_t] is affine there: -m + (x - (1 - t) m) (t - (1 - t) s^2) / (t^2 + (1 - t)^2 s^2). So a step
    takes a Gaussian to a Gaussian, and the ODE's marginals are those of the forward process.
    """
    m, s, sampler, errors = 1.5, 0.4, sampler_of(sde, steps), []
    mean, variance, times = 0.0, 1.0, sampler.times.double().tolist()
    for t, then, told in zip(times, times[1:], sampler.timesteps, strict=False):
        slope = (t - (1 - t) * s**2) / (t**2 + (1 - t) ** 2 * s**2)
        x = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
        ends, std = sampler.step(-m + slope * (x - (1 - t) * m), x, told.expand(2))
        offset, gain = ends[0].item(), (ends[1] - ends[0]).item()
        mean, variance = offset + gain * mean, gain**2 * variance + std[0].item() ** 2
        errors.append((then, abs(mean - (1 - then) * m), abs(variance / (then**2 + (1 - then) ** 2 * s**2) - 1)))
    return errors


def test_the_marginals_are_the_odes():
    assert max(max(errors) for _, *errors in relative_errors("constant", 1000)) < 0.01


def test_flow_grpos_marginals_are_the_odes_but_near_noise():
    """Its sigma^2 grows as 1 / (1 - t): the first steps, however small, make a tenth too much variance, and the later
    ones take it back, the earlier the more of them there are.
    """
    for steps, until in ((1000, 0.6), (4000, 0.88)):
        errors = relative_errors("flow_grpo", steps)
        assert all(mean < 0.01 and spread < (0.01 if t < until else 0.1) for t, mean, spread in errors)
        assert max(spread for t, _, spread in errors if t > until) > 0.01


def test_cps_has_as_much_noise_as_the_forward_process():
    """The coefficients of predicted x_0, and of predicted and fresh noise together, are those of time t'."""
    sampler, zeros = sampler_of("cps"), torch.zeros(1, 1, 1, 1)
    for t, now, then in zip(sampler.timesteps, sampler.times, sampler.times[1:], strict=False):
        x_of = lambda clean, noise: (torch.full_like(zeros, (1 - now) * clean + now * noise), zeros + noise - clean)  # noqa: B023, E731
        (of_clean, std), (of_noise, _) = (sampler.step(v, x, t[None]) for x, v in (x_of(1.0, 0.0), x_of(0.0, 1.0)))
        torch.testing.assert_close(of_clean, zeros + 1 - then)
        torch.testing.assert_close((of_noise**2 + std**2).sqrt(), zeros + then)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    return write_sd3(tmp_path_factory.mktemp("flow") / "sd3", t5=None)


def make_policy(folder: Path, **changes) -> DiffusionPolicy:
    options = {"finetune": "lora", "num_steps": 4, "eta": 0.7, "guidance": 1.0, "sampling_batch": 8, "t5_tokens": 2}
    return DiffusionPolicy(str(folder), **(options | changes))


def moved(policy: DiffusionPolicy, scale: float = 0.3) -> DiffusionPolicy:
    torch.manual_seed(0)
    with torch.no_grad():
        for p in policy.trainable():
            p += scale * torch.randn_like(p)
    return policy


@pytest.mark.parametrize("sde", KINDS)
@pytest.mark.parametrize("guidance", [1.0, 4.5])
def test_the_ratio_of_an_unmoved_policy_is_exactly_one(sde, guidance, pipeline):
    policy = make_policy(pipeline, sde=sde, eta=KINDS[sde], guidance=guidance)
    rollout = policy.sample(PROMPTS, SEEDS)
    assert list(policy.sampler.stochastic) == [0, 1, 2]
    for j in policy.sampler.stochastic:
        new = log_probs(policy, rollout, j)
        assert new.requires_grad and torch.equal((new - rollout.log_probs[:, j]).exp(), torch.ones(3))


@pytest.mark.parametrize("sde", KINDS)
def test_kl_of_a_moved_policy_is_the_closed_form(sde, pipeline):
    """A bias added to the last layer moves v by a constant d, and the mean by d times how much of v a step takes."""
    policy, shift = make_policy(pipeline, finetune="full", sde=sde, eta=KINDS[sde]), 0.01
    rollout = policy.sample(PROMPTS, SEEDS)
    assert torch.equal(policy.kl_to_base(rollout), torch.zeros(3, 4))
    with torch.no_grad():
        policy.transformer.proj_out.bias += shift
    expected, times = [], policy.sampler.times.double().tolist()
    for t, t_next in list(pairwise(times))[:3]:
        (still, std), (mean, _) = (by_hand(sde, 0.0, v, t, t_next, KINDS[sde], times[1]) for v in (0.0, shift))
        expected.append(math.prod(policy.latent_shape) * (mean - still) ** 2 / (2 * std**2))
    kl = policy.kl_to_base(rollout).double()
    torch.testing.assert_close(kl[:, :3], torch.tensor(expected).double().expand(3, 3), rtol=1e-4, atol=0)
    assert kl[:, 3].eq(0).all()  # the last step draws no noise


def test_sampling_without_noise_equals_the_plain_pipeline(pipeline):
    policy = make_policy(pipeline, guidance=2.0)
    plain = StableDiffusion3Pipeline.from_pretrained(pipeline, text_encoder_3=None, tokenizer_3=None)
    plain.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 4, "guidance_scale": 2.0, "output_type": "pt", "max_sequence_length": 2}
    images = plain(PROMPTS, latents=policy.noise(SEEDS)[:, 0], height=16, width=16, **call).images
    with policy.sampling(eta=0.0):
        assert not policy.has_density
        torch.testing.assert_close(policy.sample(PROMPTS, SEEDS).images, images, atol=1e-4, rtol=0)
    assert policy.has_density


@pytest.mark.parametrize("sde", KINDS)
def test_only_a_window_of_steps_draws_noise(sde, pipeline):
    policy = make_policy(pipeline, sde=sde, eta=KINDS[sde], sde_steps=[1, 3])
    rollout = policy.sample(PROMPTS, SEEDS)
    assert [s > 0 for s in policy.step_std.tolist()] == [False, True, True, False]
    x, t = rollout.latents[:, 0], policy.timesteps[:1].expand(3)
    step = policy.sampler.times[1] - policy.sampler.times[0]
    with torch.no_grad():
        torch.testing.assert_close(rollout.latents[:, 1], x + step * policy.predict(x, t, rollout.conditioning))
    cut = rollout.window(policy.sampler.stochastic)
    assert torch.equal(cut.latents, rollout.latents[:, 1:4]) and torch.equal(cut.timesteps, policy.timesteps[1:3])
    assert torch.equal(cut.x_0, rollout.latents[:, -1])
    with policy.sampling(num_steps=6):  # evaluation
        assert list(policy.sampler.stochastic) == [0, 1, 2, 3, 4]
    assert list(policy.sampler.stochastic) == [1, 2]


def test_a_window_that_moves_is_a_function_of_its_seed(pipeline):
    policy, seen = make_policy(pipeline, num_steps=6, sde_steps=2), set()
    for seed in range(40):
        policy.place_window(seed)
        now = policy.sampler.stochastic
        policy.place_window(seed + 1)
        policy.place_window(seed)
        assert policy.sampler.stochastic == now and len(now) == 2
        seen.add(now.start)
    assert seen == {0, 1, 2, 3}  # the last of six draws none


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eta": 0.0}, "eta=0.0: a step has a log-probability only"),
        ({"sde": "cps", "eta": 1.5}, "cps takes out all noise at 1"),
        ({"num_steps": 1}, "the last step of flow matching draws no noise"),
        ({"sde_steps": 4}, "sde_steps=4: choose 1 to 3 of 4 steps"),
        ({"sde_steps": [2, 2]}, r"sde_steps=\[2, 2\]: give \[first, end\]"),
        ({"sde": "cps", "eta": 0.8, "sde_steps": [2, 4]}, "can draw no noise"),
        ({"resolution": 17}, "resolution=17 must be a multiple of 4"),
        ({"resolution": 64}, "draws at most 48 pixels"),
        ({"t5_tokens": 600}, "t5_tokens=600 lies outside"),
        ({"compile": True}, "names no blocks of a SD3Transformer2DModel"),
        ({"finetune": "full", "frozen": "bf16"}, "finetune=full trains all weights"),
    ],
)
def test_options_that_cannot_work_are_told(options, message, pipeline):
    with pytest.raises(UserError, match=message):
        make_policy(pipeline, **options)


def test_divergence_of_equal_gaussians_is_zero():
    x = torch.randn(2, 4, 2, 2)
    assert gaussian_kl(x, x, torch.full((2, 1, 1, 1), 0.5)).eq(0).all()
