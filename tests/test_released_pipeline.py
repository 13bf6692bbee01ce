"""Stable Diffusion as it is on the hub, tiny: its folder layout, its variants, and the LoRA's way back to diffusers."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from src.errors import UserError
from src.policy.diffusion import DiffusionPolicy
from tests.conftest import ROOT, TINY, rows_of
from tests.forked import run_forked
from tests.released import FOUR_REWARDS, reward_overrides, write_rewards, write_stable_diffusion

GOLDEN = ROOT / "tests/golden"
SEEDS, PROMPTS = [1, 2], ["a cat", "two dogs"]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    """With weights in two precisions, as those of 1.4 and 1.5 are."""
    folder = write_stable_diffusion(tmp_path_factory.mktemp("hub") / "sd")
    write_stable_diffusion(folder, variant="fp16")
    return folder


def make_policy(folder: Path, **changes) -> DiffusionPolicy:
    options = {"finetune": "lora", "num_steps": 4, "eta": 1.0, "guidance": 5.0, "sampling_batch": 8}
    return DiffusionPolicy(str(folder), **(options | changes))


def test_it_loads_and_samples(pipeline):
    images = make_policy(pipeline).sample(PROMPTS, SEEDS).images
    assert images.shape == (2, 3, 16, 16) and images.std() > 0


def test_the_fp16_variant_alone_is_enough(pipeline, tmp_path):
    folder = shutil.copytree(pipeline, tmp_path / "fp16", ignore=only_variant)
    policy = make_policy(folder, variant="fp16")
    assert policy.unet.dtype == policy.vae.dtype == torch.float32
    expected = make_policy(pipeline).sample(PROMPTS, SEEDS).images
    torch.testing.assert_close(policy.sample(PROMPTS, SEEDS).images, expected, atol=1e-4, rtol=0)
    with pytest.raises(UserError, match=r"unet/diffusion_pytorch_model\.safetensors is missing"):
        make_policy(folder)


def only_variant(_, names: list[str]) -> list[str]:
    return [name for name in names if name.endswith(".safetensors") and ".fp16." not in name]


def test_faults_are_told_in_one_sentence(pipeline, tmp_path):
    pickled = write_stable_diffusion(tmp_path / "pickled", safe_serialization=False)
    other = shutil.copytree(pipeline, tmp_path / "other")
    index = json.loads((other / "model_index.json").read_text()) | {"_class_name": "StableDiffusionXLPipeline"}
    (other / "model_index.json").write_text(json.dumps(index))
    cut = shutil.copytree(pipeline, tmp_path / "cut")
    (cut / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"cut short")
    for folder, message in (
        (pickled, r"pickled weights alone \(diffusion_pytorch_model.bin\)"),
        (other, "it has no text_encoder_2"),
        (cut, "its unet cannot be loaded"),
        (tmp_path / "nowhere", r"no such folder; give one with model_index\.json"),
    ):
        with pytest.raises(UserError, match=message) as told:
            make_policy(folder)
        assert "\n" not in str(told.value)


def test_lora_draws_the_same_picture_in_plain_diffusers(pipeline, tmp_path):
    policy = make_policy(pipeline)
    base = policy.sample(PROMPTS, SEEDS).images
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter += 0.5 * torch.randn_like(parameter)
    images = policy.sample(PROMPTS, SEEDS).images
    assert (images - base).abs().max() > 0.01
    plain = StableDiffusionPipeline.from_pretrained(pipeline, safety_checker=None, feature_extractor=None)
    plain.scheduler = DDIMScheduler.from_config(plain.scheduler.config)
    plain.set_progress_bar_config(disable=True)
    plain.load_lora_weights(policy.save(tmp_path))
    noise = policy.noise(SEEDS)
    draws, step = iter(noise[:, 1:].unbind(1)), plain.scheduler.step
    plain.scheduler.step = lambda output, t, x_t, **_: step(
        output, t, x_t, eta=1.0, variance_noise=next(draws), return_dict=False
    )
    theirs = plain(
        PROMPTS, num_inference_steps=4, guidance_scale=5.0, eta=1.0, latents=noise[:, 0], output_type="pt"
    ).images
    torch.testing.assert_close(images, theirs, atol=1e-4, rtol=0)


def test_the_papers_suite_runs_on_released_files(pipeline, tmp_path):
    """Every reward, the shared tower, and an iteration of TDPO-R, from files as the hub has them."""
    write_rewards(tmp_path)
    done = run_forked(
        *TINY,
        "suite=sd14",
        "iterations=1",
        "reset.every=1",
        f"run_dir={tmp_path / 'run'}",
        f"suite.base={pipeline}",
        *reward_overrides(tmp_path, GOLDEN / "hps.pt"),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    last = rows_of(tmp_path / "run", "evaluation")[-1]
    assert all(f"eval/{name}/gain" in last for name in FOUR_REWARDS)
    assert (tmp_path / "run" / "lora").is_dir()
