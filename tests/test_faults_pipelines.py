"""Pipelines that a policy cannot use are refused at load, in a sentence; what it can make use of works."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, CLIPTextModel

from src.errors import UserError, told_in_one_sentence
from src.policy.diffusion import DiffusionPolicy
from src.tasks.building import build
from tests.conftest import TINY, composed
from tests.released import TINY_TEXT, write_bert_tokenizer, write_stable_diffusion

PROMPTS, SEEDS = ["a cat", "two dogs"], [1, 2]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    return write_stable_diffusion(tmp_path_factory.mktemp("pipelines") / "sd")


@pytest.fixture(scope="module")
def base_images(pipeline) -> torch.Tensor:
    return sampled(pipeline)


def make_policy(folder: Path, **changes) -> DiffusionPolicy:
    options = {"finetune": "lora", "num_steps": 3, "eta": 1.0, "guidance": 1.0, "sampling_batch": 8}
    return DiffusionPolicy(str(folder), **(options | changes))


def sampled(folder: Path, **changes) -> torch.Tensor:
    return make_policy(folder, **changes).sample(PROMPTS, SEEDS).images


def refusal(folder: Path, **changes) -> str:
    with pytest.raises(UserError) as told:
        make_policy(folder, **changes)
    sentence = str(told.value)
    assert "\n" not in sentence and len(sentence) < 420, sentence
    return sentence


def changed(pipeline: Path, folder: Path, file: str, changes: dict, weights: bool = False) -> Path:
    """A copy of the pipeline with other values in one of its JSON files (None: without the key)."""
    only = None if weights else shutil.ignore_patterns("*.safetensors")  # to be refused before they are looked for
    shutil.copytree(pipeline, folder, ignore=only)
    content = json.loads((folder / file).read_text()) | changes
    (folder / file).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return folder


INDEX, UNET, VAE, TEXT = "model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json"
SCHEDULER = "scheduler/scheduler_config.json"
TOKENIZER = ("tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json")
REFUSED = {
    "not quite SDXL": (INDEX, {"_class_name": "StableDiffusionXLPipeline"}, "it has no text_encoder_2"),
    "not quite SD 3": (INDEX, {"_class_name": "StableDiffusion3Pipeline"}, "it has no transformer"),
    "Cascade": (INDEX, {"_class_name": "StableCascadeDecoderPipeline"}, "it is a StableCascadeDecoderPipeline; give a"),
    "FLUX": (INDEX, {"_class_name": "FluxPipeline"}, "it is a FluxPipeline; give a StableDiffusionPipeline, such as"),
    "LCM": (INDEX, {"_class_name": "LatentConsistencyModelPipeline"}, "it is a LatentConsistencyModelPipeline"),
    "ControlNet": (INDEX, {"_class_name": "StableDiffusionControlNetPipeline"}, "it is a StableDiffusionControlNet"),
    "no class": (INDEX, {"_class_name": None}, "it is a None; give a StableDiffusionPipeline"),
    "transformer": (INDEX, {"unet": ["diffusers", "UNet2DModel"]}, "its unet is a UNet2DModel, which the policy"),
    "projected text": (INDEX, {"text_encoder": ["transformers", "CLIPTextModelWithProjection"]}, "its text_enc"),
    "code of its own": (INDEX, {"unet": ["my_unet", "MyUNet"]}, "its unet is a MyUNet of my_unet, which is not"),
    "no decoder": (INDEX, {"vae": [None, None]}, "it has no vae"),
    "inpainting": (UNET, {"in_channels": 9}, "takes 9 channels and gives 4 .inpainting: a mask"),
    "pix2pix": (UNET, {"in_channels": 8}, "takes 8 channels and gives 4 .a picture to edit"),
    "depth": (UNET, {"in_channels": 5}, "takes 5 channels and gives 4 .depth"),
    "learned variance": (UNET, {"out_channels": 8}, "takes 4 channels and gives 8; the policy's"),
    "not square": (UNET, {"sample_size": [8, 16]}, r"latents of \[8, 16\], which are not square"),
    "no size": (UNET, {"sample_size": None}, "latents of a size that it does not tell .sample_size"),
    "class numbers": (UNET, {"num_class_embeds": 10}, "wants class labels .num_class_embeds=10"),
    "class embedding": (UNET, {"class_embed_type": "timestep"}, "wants class labels .class_embed_type=timestep"),
    "SDXL's UNet": (UNET, {"addition_embed_type": "text_time"}, "as Stable Diffusion XL's .addition_embed_type=text_t"),
    "LCM's UNet": (UNET, {"time_cond_proj_dim": 256}, "guidance scale as an embedding.*time_cond_proj_dim=256"),
    "IP adapter": (UNET, {"encoder_hid_dim_type": "ip_image_proj"}, "wants states of pictures"),
    "another text encoder": (UNET, {"cross_attention_dim": 32}, "text states of width 32, and its text encoder gives"),
    "widths by block": (UNET, {"cross_attention_dim": [16, 24]}, r"width \[16, 24\], and its text encoder gives 16"),
    "16 latents": (VAE, {"latent_channels": 16}, "UNet denoises 4 channels and its VAE decodes 16"),
    "shift": (VAE, {"shift_factor": 0.06}, "its VAE moves its latents .shift_factor=0.06"),
    "means": (VAE, {"latents_mean": [0.1] * 4}, "its VAE moves its latents .latents_mean="),
    "no scale": (VAE, {"scaling_factor": 0}, "has no scaling_factor"),
    "added tokens": (TEXT, {"vocab_size": 500}, "its tokenizer has 514 tokens and its text encoder 500"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_it_is_refused_before_its_weights_are_read(kind, pipeline, tmp_path):
    file, changes, message = REFUSED[kind]
    folder = changed(pipeline, tmp_path / "sd", file, changes)
    sentence = refusal(folder)
    assert sentence.startswith(f"policy.path={folder}: ") and re.search(message, sentence), sentence


SCHEDULES = {
    "thresholding": ("DDIMScheduler", {"thresholding": True}, "DDIMScheduler thresholds the predicted picture"),
    "flow matching": ("FlowMatchEulerDiscreteScheduler", {}, "FlowMatchEulerDiscreteScheduler has no noise"),
    "flow by DPM-Solver": (
        "DPMSolverMultistepScheduler",
        {"prediction_type": "flow_prediction", "use_flow_sigmas": True},
        "DPMSolverMultistepScheduler has no noise schedule of a diffusion",
    ),
    "EDM": ("EDMEulerScheduler", {}, "EDMEulerScheduler has no noise schedule"),
    "continuous": ("EulerDiscreteScheduler", {"timestep_type": "continuous"}, "tells the network continuous timesteps"),
    "parametrisation": ("DDPMScheduler", {"prediction_type": "x0"}, "prediction_type=x0 of its DDPMScheduler is"),
    "spacing": ("DDIMScheduler", {"timestep_spacing": "karras"}, "timestep_spacing=karras is none of"),
    "betas": ("DDIMScheduler", {"trained_betas": [0.1, 0.2]}, "2 timesteps .trained_betas., and num_train"),
    "silent betas": (
        "DDIMScheduler",
        {"trained_betas": [0.1, 0.0, 0.0, 0.1], "num_train_timesteps": 4},
        "adds no noise at timestep 1",
    ),
    "unknown": ("DDIMScheduler", {"beta_schedule": "mine"}, "DDIMScheduler does not take its config"),
    "zero SNR": (
        "DDIMScheduler",
        {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
        "nothing of a picture is left .zero terminal SNR., so that predicted noise",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", SCHEDULES)
def test_a_scheduler_without_what_ddim_needs_is_named(kind, pipeline, tmp_path):
    name, changes, message = SCHEDULES[kind]
    folder = changed(pipeline, tmp_path / "sd", INDEX, {"scheduler": ["diffusers", name]}, weights=True)
    config = json.loads((folder / SCHEDULER).read_text())
    (folder / SCHEDULER).write_text(json.dumps(config | changes))
    steps = {"num_steps": 2} if kind == "silent betas" else {}
    assert re.search(message, sentence := refusal(folder, **steps)), sentence


def test_clip_sample_is_what_the_pipeline_makes_of_it(pipeline, base_images, tmp_path):
    """StableDiffusionPipeline turns it off itself: it is meant for pixels."""
    folder = changed(pipeline, tmp_path / "sd", INDEX, {"scheduler": ["diffusers", "DDIMScheduler"]}, weights=True)
    config = json.loads((folder / SCHEDULER).read_text())
    (folder / SCHEDULER).write_text(json.dumps(config | {"clip_sample": True}))
    plain = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, feature_extractor=None)
    assert plain.scheduler.config.clip_sample is False
    assert torch.equal(sampled(folder), base_images)


@pytest.mark.parametrize("missing", ["model_index.json", UNET, VAE, TEXT, SCHEDULER, "tokenizer"])
def test_a_missing_part_is_named(missing, pipeline, tmp_path):
    folder = shutil.copytree(pipeline, tmp_path / "sd")
    shutil.rmtree(folder / missing) if (folder / missing).is_dir() else (folder / missing).unlink()
    assert ("no tokenizer there" if missing == "tokenizer" else missing) in refusal(folder)


@pytest.mark.parametrize("file", [INDEX, UNET, VAE, TEXT, SCHEDULER, *TOKENIZER])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", '{"größe": 1}'.encode("latin-1")])
def test_a_broken_file_is_named(file, content, pipeline, tmp_path):
    folder = shutil.copytree(pipeline, tmp_path / "sd", ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / file).write_bytes(content)
    assert f"{folder}/{file} " in (sentence := refusal(folder)) and sentence.endswith("; fetch it anew.")


def test_a_tokenizer_of_another_kind_is_refused(pipeline, tmp_path):
    folder = shutil.copytree(pipeline, tmp_path / "sd", ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / TOKENIZER[0]).write_text('{"model": {}}')
    said = (
        f"policy.path={folder}/tokenizer: its tokenizer cannot be loaded from tokenizer.json, tokenizer_config.json ("
    )
    assert refusal(folder).startswith(said)


def test_what_is_no_pipeline_is_told(pipeline, tmp_path):
    assert "there is UNet2DConditionModel alone" in refusal(pipeline / "unet")
    assert "there is CLIPTextModel alone" in refusal(pipeline / "text_encoder")
    assert "StableDiffusionPipeline.from_single_file" in refusal(pipeline / UNET)
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "pytorch_lora_weights.safetensors").touch()
    assert "there is a LoRA alone" in refusal(tmp_path / "lora")
    assert "a run's weights alone" in refusal(tmp_path)


def test_a_tokenizer_without_a_limit_reads_what_the_encoder_has_positions_for(pipeline, base_images, tmp_path):
    config = "tokenizer/tokenizer_config.json"
    folder = changed(pipeline, tmp_path / "sd", config, {"model_max_length": None}, weights=True)
    policy = make_policy(folder)
    assert policy.encode_prompts(["a cat " * 40]).states.shape == (1, TINY_TEXT["max_position_embeddings"], 16)
    assert torch.equal(policy.sample(PROMPTS, SEEDS).images, base_images)
    text = json.loads((folder / TEXT).read_text())
    (folder / TEXT).write_text(json.dumps({k: v for k, v in text.items() if k != "max_position_embeddings"}))
    assert "says how long a prompt may be" in refusal(folder)


def test_a_tokenizer_without_padding_is_refused(pipeline, tmp_path):
    folder = shutil.copytree(pipeline, tmp_path / "sd")
    index = json.loads((folder / INDEX).read_text()) | {"tokenizer": ["transformers", "PreTrainedTokenizerFast"]}
    (folder / INDEX).write_text(json.dumps(index))
    file = folder / "tokenizer" / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token": None}))
    assert "has no pad_token" in refusal(folder)


def test_weights_in_shards_are_read(pipeline, base_images, tmp_path):
    folder = shutil.copytree(pipeline, tmp_path / "sd")
    parts = {"unet": make_policy(pipeline, finetune="full").unet}
    parts["text_encoder"] = CLIPTextModel.from_pretrained(pipeline / "text_encoder", dtype=torch.float32)
    for part, model in parts.items():
        shutil.rmtree(folder / part)
        model.save_pretrained(folder / part, max_shard_size="10KB")
        assert len(list((folder / part).glob("*-of-*.safetensors"))) > 1
    assert torch.equal(sampled(folder), base_images)
    shard = sorted((folder / "unet").glob("*-of-*.safetensors"))[1]
    shard.unlink()
    assert f"unet/{shard.name} is missing there" in refusal(folder)


def test_the_variant_that_is_there_is_named(pipeline, tmp_path):
    folder = shutil.copytree(pipeline, tmp_path / "sd")
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert "choose policy.variant=fp16" in refusal(folder)
    assert "vae/diffusion_pytorch_model.fp16.safetensors is missing there" in refusal(folder, variant="fp16")


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("fault", ["missing", "unknown", "shape"])
def test_no_part_is_filled_with_random_weights(part, fault, pipeline, tmp_path):
    folder = shutil.copytree(pipeline, tmp_path / "sd")
    (file,) = (folder / part).glob("*.safetensors")
    state = load_file(file)
    key = next(key for key in sorted(state) if key.endswith("weight"))
    value = state.pop(key).clone()
    state |= {"missing": {}, "unknown": {key: value, "more": value.clone()}, "shape": {key: value[:-1].clone()}}[fault]
    file.unlink()
    save_file(state, file, {"format": "pt"})
    assert "of another architecture" in (sentence := refusal(folder)) or "cannot be loaded" in sentence


def test_text_encoders_of_both_transformers_are_read(pipeline, base_images, tmp_path):
    folder = shutil.copytree(pipeline, tmp_path / "sd")
    file = folder / "text_encoder" / "model.safetensors"
    bare = {key.removeprefix("text_model."): value.clone() for key, value in load_file(file).items()}
    table = {"text_model.embeddings.position_ids": torch.arange(32)[None]}  # Stable Diffusion 1.4's file has it
    for state in (bare, {f"text_model.{key}": value for key, value in bare.items()} | table):
        file.unlink()
        save_file(state, file, {"format": "pt"})
        assert torch.equal(sampled(folder), base_images)


def test_a_decoder_of_old_diffusers_is_read(pipeline, base_images, tmp_path):
    """Stable Diffusion 1.4's own: attention has other names there, and its configuration fewer keys."""
    folder = shutil.copytree(pipeline, tmp_path / "sd")
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for key, value in load_file(file).items():
        for new, old in names.items():
            key = key.replace(f".attentions.0.{new}.", f".attentions.0.{old}.")
        state[key] = value.clone()
    assert any(".query." in key for key in state)
    file.unlink()
    save_file(state, file, {"format": "pt"})
    config = json.loads((folder / VAE).read_text())
    del config["scaling_factor"]
    (folder / VAE).write_text(json.dumps(config))
    assert torch.equal(sampled(folder), base_images)


def test_latents_are_scaled_by_the_decoders_own_factor(pipeline, tmp_path):
    folder = changed(pipeline, tmp_path / "sd", VAE, {"scaling_factor": 0.5}, weights=True)
    latents = torch.randn(1, 4, 8, 8)
    vae = AutoencoderKL.from_pretrained(folder / "vae")
    with torch.no_grad():
        expected = (vae.decode(latents / 0.5).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(make_policy(folder).decode(latents), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_targets": ["foo"]}, "no module that ends in foo; its attention's are to_q"),
        ({"lora_targets": ["to_q", "tok"]}, "no module that ends in tok"),
        ({"lora_targets": "foo.*"}, "lora_targets=foo.* cannot be adapted"),
        ({"lora_targets": ["norm1"]}, r"lora_targets=\['norm1'\] cannot be adapted"),
        ({"lora_targets": []}, "names no module"),
        ({"lora_rank": 0}, "lora_rank=0 must be at least 1"),
        ({"lora_alpha": 0}, "lora_alpha=0 must be at least 1"),
        ({"num_steps": 1000}, "num_steps=1000: .*leading timesteps of 1000 give that to 1..999 steps"),
    ],
)
def test_options_that_cannot_work_are_told(options, message, pipeline):
    assert re.search(message, sentence := refusal(pipeline, **options)), sentence


@pytest.mark.parametrize("targets", [["conv1"], ["attn2.to_k"], ".*attn1.to_[qkv]"])
def test_other_targets_work(targets, pipeline, base_images):
    policy = make_policy(pipeline, lora_targets=targets)
    assert policy.trainable()
    assert torch.equal(policy.sample(PROMPTS, SEEDS).images, base_images)  # fresh adapters add nothing


def test_the_command_says_it_in_a_sentence(pipeline, tmp_path, capsys):
    folder = changed(pipeline, tmp_path / "sd", UNET, {"in_channels": 9})
    cfg = composed(*TINY, f"suite.base={folder}")
    with pytest.raises(SystemExit) as ended, told_in_one_sentence():
        build(cfg.policy)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: policy.path={folder}: its UNet takes 9 channels")


def test_the_text_encoder_may_be_of_another_kind(tmp_path):
    """BERT in place of CLIP, as in a Chinese Stable Diffusion; its tokenizer has no beginning and end of CLIP's."""
    folder = write_stable_diffusion(tmp_path / "sd")
    for part in ("text_encoder", "tokenizer"):
        shutil.rmtree(folder / part)
    tokenizer = write_bert_tokenizer(folder / "tokenizer")
    small = {key: TINY_TEXT[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers")}
    config = BertConfig(**small, num_attention_heads=2, vocab_size=len(tokenizer), max_position_embeddings=24)
    BertModel(config).save_pretrained(folder / "text_encoder")
    index = json.loads((folder / INDEX).read_text())
    index |= {"text_encoder": ["transformers", "BertModel"], "tokenizer": ["transformers", "BertTokenizer"]}
    (folder / INDEX).write_text(json.dumps(index))
    assert make_policy(folder).encode_prompts(["a cat"]).states.shape == (1, 24, 16)
    assert sampled(folder).std() > 0
