import shutil

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from src.algorithms.base import step_and_log_prob
from src.algorithms.forward import noised, prediction
from src.errors import UserError
from src.policy.diffusion import DiffusionPolicy
from src.policy.reference import Reference
from src.resets.lora import LoraNeurons
from src.types import Credit, Rollout, Rows, States
from tests.conftest import BASE
from tests.released import TINY_UNET, write_stable_diffusion

PROMPTS, SEEDS = ["cat", "dog", "a zebra"], [1, 2, 3]


def make_policy(**changes) -> DiffusionPolicy:
    options = {"path": BASE, "finetune": "lora", "num_steps": 4, "eta": 1.0, "guidance": 1.0, "sampling_batch": 8}
    return DiffusionPolicy(**(options | changes))


def log_probs(policy: DiffusionPolicy, rollout: Rollout, slot: int) -> torch.Tensor:
    """Of a step of every sample, as algorithms take them, with a gradient."""
    n = len(rollout)
    credit = Credit(torch.zeros(n, len(rollout.timesteps)))
    rows = Rows(rollout, credit, torch.arange(n), torch.full((n,), slot))
    return step_and_log_prob(rows, policy)[1]


def perturb(policy: DiffusionPolicy, scale: float = 0.02) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for p in policy.trainable():
            p += scale * torch.randn_like(p)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_ratio_is_exactly_one_before_the_first_update(guidance):
    policy = make_policy(guidance=guidance)
    rollout = policy.sample(PROMPTS, SEEDS)
    for j in range(policy.num_steps):
        new = log_probs(policy, rollout, j)
        assert new.requires_grad
        assert torch.equal((new - rollout.log_probs[:, j]).exp(), torch.ones(3))


def test_on_the_forward_process_there_is_no_guidance():
    """Neither of the policy nor of its reference; what is sampled has it."""
    policy = make_policy(guidance=3.0)
    perturb(policy)
    rollout = policy.sample(PROMPTS, SEEDS)
    rows = Rows(rollout, Credit(torch.zeros(3, 4)), torch.arange(3), torch.full((3,), 2))
    at, _ = noised(rows, policy)
    output, step = prediction(policy, at)
    assert not torch.allclose(output, policy.predict(at.x_t, at.t, at.conditioning), atol=1e-2)
    reference = Reference(policy)
    near = reference.mean(step.at)
    with policy.sampling(guidance=1.0):
        assert torch.equal(output, policy.predict(at.x_t, at.t, at.conditioning))
        assert torch.equal(near, reference.mean(States(at.x_t, at.t, at.conditioning)))


def test_a_fresh_adapter_changes_nothing_and_a_moved_one_does():
    policy = make_policy()
    adapted = policy.sample(PROMPTS, SEEDS).images
    policy.unet.disable_adapters()
    assert torch.equal(adapted, policy.sample(PROMPTS, SEEDS).images)
    policy.unet.enable_adapters()
    perturb(policy)
    assert not torch.equal(adapted, policy.sample(PROMPTS, SEEDS).images)


def test_sampling_equals_the_plain_pipeline():
    policy = make_policy(guidance=2.0, num_steps=5)
    pipe = StableDiffusionPipeline.from_pretrained(BASE)
    pipe.set_progress_bar_config(disable=True)
    noise = policy.noise(SEEDS)
    draws = iter(noise[:, 1:].unbind(1))

    def one_step(output, t, x_t, **_):
        step = pipe.scheduler.__class__.step
        return step(pipe.scheduler, output, t, x_t, eta=1.0, variance_noise=next(draws), return_dict=False)

    pipe.scheduler.step = one_step
    images = pipe(
        PROMPTS, num_inference_steps=5, guidance_scale=2.0, eta=1.0, latents=noise[:, 0], output_type="pt"
    ).images
    torch.testing.assert_close(policy.sample(PROMPTS, SEEDS).images, images, atol=1e-4, rtol=0)


def test_a_sample_is_a_function_of_its_own_seed():
    policy = make_policy()
    together, alone = policy.sample(PROMPTS, SEEDS), policy.sample(PROMPTS[1:2], SEEDS[1:2])
    torch.testing.assert_close(together.images[1:2], alone.images, atol=1e-4, rtol=0)
    torch.testing.assert_close(together.log_probs[1:2], alone.log_probs, atol=1e-4, rtol=0)


def test_prompts_are_encoded_once():
    policy = make_policy()
    calls = []
    policy.text_encoder.register_forward_hook(lambda *args: calls.append(1))
    first = policy.encode_prompts(["cat", "dog", "cat"])
    assert torch.equal(policy.encode_prompts(["dog", "cat"]).states, first.states[[1, 0]])
    assert len(calls) == 2  # each by itself


def test_lora_opens_in_plain_diffusers(tmp_path):
    policy = make_policy()
    perturb(policy)
    assert policy.save(tmp_path) == tmp_path / "lora"
    ours = policy.decode(torch.ones(1, 4, 16, 16))  # the decoder is untouched by training
    pipe = StableDiffusionPipeline.from_pretrained(BASE)
    assert np.isfinite(ours.numpy()).all()
    x, t = torch.randn(2, 4, 16, 16), torch.tensor([500, 100])
    text = policy.encode_prompts(["cat", "dog"])
    base = pipe.unet(x, t, text.states).sample
    pipe.load_lora_weights(tmp_path / "lora")
    torch.testing.assert_close(pipe.unet(x, t, text.states).sample, policy.predict(x, t, text), atol=1e-4, rtol=1e-4)
    assert (pipe.unet(x, t, text.states).sample - base).abs().max() > 1e-3


def gradients(policy: DiffusionPolicy) -> tuple[list[torch.Tensor], int]:
    """Of the log-probabilities of a rollout's first steps, and the bytes that were kept for computing them."""
    rollout, kept = policy.sample(PROMPTS, SEEDS), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.nbytes) or x, lambda x: x):
        loss = log_probs(policy, rollout, 0).sum()
    forward = sum(kept)
    return list(torch.autograd.grad(loss, policy.trainable())), forward


@pytest.mark.parametrize("finetune", ["lora", "full"])
def test_checkpointing_keeps_less_and_changes_no_gradient(finetune):
    policy = make_policy(finetune=finetune, guidance=3.0, num_steps=1)
    perturb(policy, 1e-3)
    plain, kept = gradients(policy)
    checkpointed = make_policy(finetune=finetune, guidance=3.0, num_steps=1, gradient_checkpointing=True)
    checkpointed.unet.load_state_dict(policy.unet.state_dict())
    again, kept_then = gradients(checkpointed)
    assert kept_then < 0.7 * kept
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_the_decoder_takes_pictures_one_at_a_time_on_request():
    seen, latents = [], torch.randn(3, 4, 16, 16)
    sliced = make_policy(vae_slicing=True)
    sliced.vae.decoder.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    torch.testing.assert_close(sliced.decode(latents), make_policy().decode(latents), atol=1e-5, rtol=0)
    assert seen == [1, 1, 1]


def test_few_prompts_are_kept_and_those_used_last(monkeypatch):
    monkeypatch.setattr("src.policy.prompts.TEXT_CACHE", 2)
    policy = make_policy()
    first = policy.encode_prompts(["cat", "dog", "cat"])
    policy.encode_prompts(["horse"])
    assert list(policy._prompts.kept) == ["dog", "horse"]
    policy.encode_prompts(["dog"])
    policy.encode_prompts(["cow"])
    assert list(policy._prompts.kept) == ["dog", "cow"]
    again = policy.encode_prompts(["cat", "dog", "cat"])  # more than are kept
    torch.testing.assert_close(again.states, first.states)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("c++"), reason="torch.compile needs a C++ compiler on the CPU")
def test_a_compiled_policy_is_the_same_policy(tmp_path):
    """Output, gradients, names; the ratio is 1 in half precision too; and hooks inside the blocks are still called."""
    folder = write_stable_diffusion(tmp_path / "sd", TINY_UNET | {"block_out_channels": (8, 8)})
    options = {"path": str(folder), "guidance": 5.0, "num_steps": 2}
    policy, compiled = make_policy(**options), make_policy(**options, compile=True)
    perturb(policy)
    compiled.unet.load_state_dict(policy.unet.state_dict())
    assert policy.state_dict().keys() == compiled.state_dict().keys()
    torch.testing.assert_close(
        compiled.sample(PROMPTS, SEEDS).images, policy.sample(PROMPTS, SEEDS).images, atol=1e-5, rtol=0
    )
    for a, b in zip(gradients(policy)[0], gradients(compiled)[0], strict=True):
        assert (a - b).norm() <= 1e-4 * a.norm()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rollout = compiled.sample(PROMPTS, SEEDS)
        for j in range(compiled.num_steps):
            assert torch.equal(log_probs(compiled, rollout, j), rollout.log_probs[:, j])
    states = policy.sample(PROMPTS, SEEDS), torch.tensor([0, 1, 2, 0]), torch.tensor([0, 0, 1, 1])
    measured = [LoraNeurons(each, microbatch=3).magnitudes(*states) for each in (policy, compiled)]
    for a, b in zip(*measured, strict=True):
        torch.testing.assert_close(a, b)


def test_full_finetuning_trains_the_whole_unet():
    policy = make_policy(finetune="full")
    assert sum(p.numel() for p in policy.trainable()) == sum(p.numel() for p in policy.unet.parameters())


def test_bad_options_are_refused():
    with pytest.raises(UserError, match="eta"):
        make_policy(eta=0.0)
    with pytest.raises(UserError, match=r"model_index\.json"):
        make_policy(path="/nowhere")


@pytest.mark.parametrize("finetune", ["lora", "full"])
def test_kl_is_zero_for_an_unmoved_policy_and_the_base_comes_back(finetune):
    policy = make_policy(finetune=finetune)
    rollout = policy.sample(PROMPTS, SEEDS)
    assert torch.equal(policy.kl_to_base(rollout), torch.zeros(3, 4))
    perturb(policy)
    moved = policy.sample(PROMPTS, SEEDS)
    assert (policy.kl_to_base(moved) > 0).all()
    with policy.as_base():
        assert torch.equal(policy.sample(PROMPTS, SEEDS).images, rollout.images)
    assert torch.equal(policy.sample(PROMPTS, SEEDS).images, moved.images)


def test_kl_equals_the_closed_form_for_a_mean_moved_by_a_constant():
    """A bias added to the last convolution moves v by a constant d, x_0 by -sqrt(1 - a) d, eps by sqrt(a) d."""
    policy, shift = make_policy(finetune="full"), 0.01
    rollout = policy.sample(PROMPTS, SEEDS)
    with torch.no_grad():
        policy.unet.conv_out.bias += shift
    a, a_prev = (bars.double() for bars in policy.sampler.schedule.alpha_bars(policy.timesteps))
    std = ((1 - a_prev) / (1 - a) * (1 - a / a_prev)).sqrt()  # eta 1
    moved = shift * (-(a_prev.sqrt()) * (1 - a).sqrt() + (1 - a_prev - std**2).clamp(min=0).sqrt() * a.sqrt())
    dimensions = torch.tensor(policy.latent_shape).prod()
    expected = dimensions * moved**2 / (2 * std**2)
    torch.testing.assert_close(policy.kl_to_base(rollout).double(), expected.expand(3, 4), rtol=1e-5, atol=0)
