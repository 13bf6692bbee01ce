"""Stable Diffusion XL and 3, tiny, as they are on the hub: conditioning, LoRA, memory, and a whole run on each."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    SD3Transformer2DModel,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

from src.errors import UserError
from src.policy.adoption import adopt
from src.policy.diffusion import DiffusionPolicy
from src.policy.weights import recognise
from tests.conftest import ROOT, TINY, rows_of
from tests.forked import run_forked
from tests.released import FOUR_REWARDS, TINY_VAE, reward_overrides, write_rewards, write_sd3, write_sdxl
from tests.test_policy import log_probs

SEEDS, PROMPTS = [1, 2], ["a cat", "two dogs"]
GOLDEN = ROOT / "tests/golden"
WRITERS = {"sdxl": write_sdxl, "sd3": write_sd3}
ETA = {"sdxl": 1.0, "sd3": 0.7}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    hub = tmp_path_factory.mktemp("hub")
    return {name: write(hub / name) for name, write in WRITERS.items()}


def make_policy(folder: Path, eta: float = 1.0, **changes) -> DiffusionPolicy:
    options = {"finetune": "lora", "num_steps": 4, "guidance": 5.0, "sampling_batch": 8}
    return DiffusionPolicy(str(folder), eta=eta, **(options | changes))


def moved(policy: DiffusionPolicy, scale: float = 0.5) -> DiffusionPolicy:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter += scale * torch.randn_like(parameter)
    return policy


def drawn_by_diffusers(folder: Path, policy: DiffusionPolicy, lora: Path | None = None, **load) -> torch.Tensor:
    """The same prompts from the same noise by the plain pipeline, in deterministic steps; 256 tokens of a T5."""
    plain = DiffusionPipeline.from_pretrained(folder, **load)
    plain.set_progress_bar_config(disable=True)
    if isinstance(plain, StableDiffusionXLPipeline):
        plain.scheduler = DDIMScheduler.from_config(plain.scheduler.config, clip_sample=False, set_alpha_to_one=False)
    if lora is not None:
        plain.load_lora_weights(lora)
    side = policy.latent_shape[1] * 2
    call = {"num_inference_steps": 4, "guidance_scale": 5.0, "output_type": "pt", "height": side, "width": side}
    return plain(PROMPTS, latents=policy.noise(SEEDS)[:, 0], **call).images


@pytest.mark.parametrize("name", WRITERS)
def test_it_draws_what_the_plain_pipeline_draws(name, folders):
    policy = make_policy(folders[name])
    with policy.sampling(eta=0.0):
        images = policy.sample(PROMPTS, SEEDS).images
    assert images.std() > 0.01
    torch.testing.assert_close(images, drawn_by_diffusers(folders[name], policy), atol=1e-4, rtol=0)


def test_an_empty_prompt_of_sdxl_has_states_of_zeros(folders, tmp_path):
    """As base 1.0 has it; where the pipeline does not say so, those of the text encoders."""
    told = make_policy(folders["sdxl"]).encode_prompts(["", "a cat"])
    assert [table.shape[1:] for table in told.tables] == [(32, 40), (20,)]
    assert all(table[0].eq(0).all() and table[1].ne(0).any() for table in told.tables)
    plain = shutil.copytree(folders["sdxl"], tmp_path / "sdxl")
    index = json.loads((plain / "model_index.json").read_text()) | {"force_zeros_for_empty_prompt": False}
    (plain / "model_index.json").write_text(json.dumps(index))
    assert all(table[0].ne(0).any() for table in make_policy(plain).encode_prompts([""]).tables)


def test_a_t5_may_be_left_out(folders):
    policy = make_policy(folders["sd3"], 0.7, t5=False)
    assert not hasattr(policy, "text_encoder_3")
    with policy.sampling(eta=0.0):
        images = policy.sample(PROMPTS, SEEDS).images
    expected = drawn_by_diffusers(folders["sd3"], policy, text_encoder_3=None, tokenizer_3=None)
    torch.testing.assert_close(images, expected, atol=1e-4, rtol=0)
    assert (images - drawn_by_diffusers(folders["sd3"], policy)).abs().max() > 1e-4


@pytest.mark.parametrize("name", WRITERS)
def test_a_lora_draws_the_same_picture_in_plain_diffusers(name, folders, tmp_path):
    policy = make_policy(folders[name], ETA[name])
    with policy.sampling(eta=0.0):
        base = policy.sample(PROMPTS, SEEDS).images
        images = moved(policy).sample(PROMPTS, SEEDS).images
    assert (images - base).abs().max() > 0.01
    saved = policy.save(tmp_path)
    torch.testing.assert_close(images, drawn_by_diffusers(folders[name], policy, saved), atol=1e-4, rtol=0)


@pytest.mark.parametrize("finetune", ["lora", "full"])
@pytest.mark.parametrize("name", WRITERS)
def test_weights_of_others_are_taken_up(name, finetune, folders, tmp_path):
    """What one policy has saved, another one computes with to the bit; half of the full weights lies half way."""
    tuned, other = (make_policy(folders[name], ETA[name], finetune=finetune, lora_alpha=8) for _ in range(2))
    moved(tuned, 0.1)
    tuned.save(tmp_path)
    base = other.sample(PROMPTS, SEEDS).images
    adopt(other, recognise(str(tmp_path)), "the base")
    images = tuned.sample(PROMPTS, SEEDS).images
    assert torch.equal(other.sample(PROMPTS, SEEDS).images, images) and (images - base).abs().max() > 0.01
    adopt(other, recognise(str(tmp_path)), "the base", scale=0.0)
    torch.testing.assert_close(other.sample(PROMPTS, SEEDS).images, base, atol=1e-4, rtol=0)
    against = make_policy(folders["sd3" if name == "sdxl" else "sdxl"], finetune=finetune)
    with pytest.raises(UserError, match=r"suite\.base=|and the base has a UNet"):
        adopt(against, recognise(str(tmp_path)), "the base")


@pytest.mark.parametrize("name", WRITERS)
def test_pictures_may_have_another_size(name, folders):
    policy = make_policy(folders[name], ETA[name], resolution=24)
    with policy.sampling(eta=0.0):
        images = policy.sample(PROMPTS, SEEDS).images
    assert images.shape == (2, 3, 24, 24)
    torch.testing.assert_close(images, drawn_by_diffusers(folders[name], policy), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", WRITERS)
def test_the_ratio_is_one_with_frozen_weights_in_half_precision(name, folders):
    policy = make_policy(folders[name], ETA[name], frozen="bf16", encoders="bf16", gradient_checkpointing=True)
    assert {p.dtype for p in policy.trainable()} == {torch.float32}
    frozen = [p for p in policy.network.parameters() if not p.requires_grad]
    assert {p.dtype for p in frozen} == {torch.bfloat16}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rollout = policy.sample(PROMPTS, SEEDS)
        for j in policy.sampler.stochastic:
            new = log_probs(policy, rollout, j)
            assert torch.equal(new, rollout.log_probs[:, j])
    new.sum().backward()
    assert any(p.grad.abs().sum() > 0 for p in policy.trainable())


def test_sdxls_decoder_stays_in_float32_unless_another_is_given(folders, tmp_path):
    policy, latents = make_policy(folders["sdxl"]), torch.randn(1, 4, 8, 8)
    exact = policy.decode(latents)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(policy.decode(latents), exact)
    torch.manual_seed(1)
    AutoencoderKL(latent_channels=4, scaling_factor=0.13025, force_upcast=False, **TINY_VAE).save_pretrained(tmp_path)
    safe = make_policy(folders["sdxl"], vae=str(tmp_path))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not torch.equal(safe.decode(latents), exact)
    with pytest.raises(UserError, match="no decoder of the pipeline's latents"):
        make_policy(folders["sd3"], vae=str(tmp_path))


@pytest.mark.parametrize("name", WRITERS)
def test_text_encoders_are_dropped_and_prompts_read_from_disk(name, folders, tmp_path, monkeypatch):
    plain = make_policy(folders[name]).encode_prompts(PROMPTS)
    options = {"prompt_cache": str(tmp_path), "drop_text_encoders": True, "eta": ETA[name]}
    first = make_policy(folders[name], **options)
    assert not hasattr(first, "text_encoder")
    told = first.encode_prompts(PROMPTS)
    assert not hasattr(first, "text_encoder") and len(list(tmp_path.glob("*/*.safetensors"))) == 3  # "" too
    monkeypatch.setattr(DiffusionPolicy, "_load_encoders", lambda self: pytest.fail("an encoder was loaded"))
    again = make_policy(folders[name], **options).encode_prompts(PROMPTS[::-1])
    for a, b, c in zip(plain.rows(), told.rows(), again.rows(), strict=True):
        assert torch.equal(a, b) and torch.equal(a, c.flip(0))
    with pytest.raises(pytest.fail.Exception):
        make_policy(folders[name], **(options | {"encoders": "bf16"})).encode_prompts(PROMPTS)  # of another encoder


INDEX, UNET, TRANSFORMER = "model_index.json", "unet/config.json", "transformer/config.json"
SCHEDULER, VAE, T5 = "scheduler/scheduler_config.json", "vae/config.json", "text_encoder_3/config.json"
FLOW = "FlowMatchEulerDiscreteScheduler"
BARE = ["transformers", "CLIPTextModel"]
REFUSED = {
    "a refiner": ("sdxl", UNET, {"projection_class_embeddings_input_dim": 20 + 5 * 8}, "takes 60 .*a refiner"),
    "one text encoder's": ("sdxl", UNET, {"cross_attention_dim": 16}, "text states of width 16, and its text encoder"),
    "SDXL for inpainting": ("sdxl", UNET, {"in_channels": 9}, "takes 9 channels and gives 4 .inpainting"),
    "shifted latents": ("sdxl", VAE, {"latents_mean": [0.1] * 4}, "its VAE moves its latents"),
    "flow for a UNet": ("sdxl", INDEX, {"scheduler": ["diffusers", FLOW]}, "has no noise sch"),
    "DDIM for a flow": ("sd3", INDEX, {"scheduler": ["diffusers", "DDIMScheduler"]}, "is a DDIMScheduler; gi"),
    "dynamic shift": ("sd3", SCHEDULER, {"use_dynamic_shifting": True}, "has use_dynamic_shifting, which"),
    "no projection": ("sd3", INDEX, {"text_encoder": BARE}, "is a CLIPTextModel"),
    "pooled states": ("sd3", TRANSFORMER, {"pooled_projection_dim": 64}, "reads 64 pooled numbers.* 32"),
    "another T5": ("sd3", T5, {"d_model": 96}, "width 48, and its T5 gives 96"),
    "wide CLIPs": ("sd3", TRANSFORMER, {"joint_attention_dim": 32}, "width 32, and its text encoders give 40"),
    "an editor": ("sd3", TRANSFORMER, {"in_channels": 33}, "takes 33 channels and gives 16"),
    "four latents": ("sd3", VAE, {"latent_channels": 4}, "denoises 16 channels and its VAE decodes 4"),
    "a control net": ("sd3", INDEX, {"_class_name": "StableDiffusion3ControlNetPipeline"}, "it is a Stable"),
    "FLUX": ("sd3", INDEX, {"_class_name": "FluxPipeline"}, "it is a FluxPipeline; give a"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_a_policy_cannot_use_is_told_in_a_sentence(kind, folders, tmp_path):
    name, file, changes, message = REFUSED[kind]
    folder = shutil.copytree(folders[name], tmp_path / "changed")
    content = json.loads((folder / file).read_text()) | changes
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as told:
        make_policy(folder)
    assert "\n" not in str(told.value) and len(str(told.value)) < 420


@pytest.mark.parametrize("name", ["sdxl", "sd35"])
def test_names_and_shapes_of_the_real_network(name):
    """Of the public configurations, without any weights."""
    from benchmarks.weights import SD35, SDXL

    if name == "sdxl":
        with torch.device("meta"):
            network = UNet2DConditionModel(**SDXL["unet"])
        shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
        assert sum(p.numel() for p in network.parameters()) == 2_567_463_684
        assert shapes["add_embedding.linear_1.weight"] == (1280, 2816)
        assert shapes["mid_block.attentions.0.transformer_blocks.9.attn2.to_k.weight"] == (1280, 2048)
        assert shapes["down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q.weight"] == (640, 640)
        return
    with torch.device("meta"):
        network = SD3Transformer2DModel(**SD35["transformer"])
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    assert shapes["transformer_blocks.12.attn2.to_q.weight"] == (1536, 1536)
    assert "transformer_blocks.13.attn2.to_q.weight" not in shapes
    assert shapes["transformer_blocks.23.attn.add_k_proj.weight"] == (1536, 1536)
    assert "transformer_blocks.23.attn.to_add_out.weight" not in shapes
    assert shapes["context_embedder.weight"] == (1536, 4096)
    assert shapes["pos_embed.pos_embed"] == (1, 384**2, 1536)
    assert shapes["time_text_embed.text_embedder.linear_1.weight"] == (1536, 2048)


@pytest.mark.parametrize(("suite", "name"), [("sdxl_single_gpu", "sdxl"), ("sd35_single_gpu", "sd3")])
def test_the_suite_runs_on_released_files(suite, name, folders, tmp_path):
    """An iteration of TDPO-R with a reset, evaluation and KL; saved, and gone on with."""
    write_rewards(tmp_path)
    run = tmp_path / "run"
    done = run_forked(
        *TINY,
        f"suite={suite}",
        "iterations=1",
        "reset.every=1",
        f"run_dir={run}",
        f"suite.base={folders[name]}",
        "policy.resolution=null",
        "policy.vae=null",
        "policy.t5_tokens=8",
        "evaluation.num_steps=3",
        f"policy.prompt_cache={tmp_path / 'prompts'}",
        *reward_overrides(tmp_path, GOLDEN / "hps.pt"),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    last = rows_of(run, "evaluation")[-1]
    assert all(f"eval/{name}/gain" in last for name in FOUR_REWARDS) and last["kl/trajectory"] > 0
    (iteration,) = rows_of(run, "iteration")
    assert iteration["reset/share"] > 0 and iteration["policy/ratio_mean"] == pytest.approx(1, abs=0.05)
    assert (run / "lora" / "pytorch_lora_weights.safetensors").is_file()
    more = run_forked(f"resume={run}", "iterations=2")
    assert more.returncode == 0, more.stderr[-2000:]
    assert [row["iteration"] for row in rows_of(run, "iteration")] == [1, 2]
