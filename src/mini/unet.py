"""The denoiser of the miniature world: v-prediction on animals."""

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from jaxtyping import Int
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from src.files import read_json, write_json
from src.mini.captions import tokenize
from src.mini.latents import LatentStage
from src.saving import name_tensors_for_both, save_tokenizer


def ddim_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule, with v-prediction and timesteps that start at the last (Lin et al. 2023).

    Their rescaling to a signal of exactly zero is left out: diffusers' eta = 1 step then takes the root of a rounding
    error below zero.
    """
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )


class UNetStage(LatentStage):
    """Denoising of latents of augmented animals by Stable Diffusion's UNet."""

    def __init__(self, *, channels: list[int], layers_per_block: int, **kw):
        super().__init__(**kw)
        base = self.weights_dir / "base"
        text_encoder = CLIPTextModel.from_pretrained(base / "text_encoder", dtype=torch.float32)
        tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
        self.scheduler = ddim_scheduler()
        self.unet = UNet2DConditionModel(
            sample_size=16,
            in_channels=4,
            out_channels=4,
            layers_per_block=layers_per_block,
            block_out_channels=tuple(channels),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=text_encoder.config.hidden_size,
            attention_head_dim=tuple(max(1, c // 32) for c in channels),  # diffusers reads this as the number of heads
            norm_num_groups=16,
        ).to(memory_format=torch.channels_last)
        with torch.no_grad():
            self.text_states = text_encoder(tokenize(tokenizer, self.captions)).last_hidden_state

    def noised(self, rng: torch.Generator) -> tuple[Tensor, Int[Tensor, " b"], Tensor, Tensor]:
        """(x_t, t, text states, v), v being the target of a v-prediction network."""
        latents, caption = self.draw(rng)
        noise = torch.randn(latents.shape, generator=rng)
        t = torch.randint(self.scheduler.config.num_train_timesteps, (len(latents),), generator=rng)
        x_t = self.scheduler.add_noise(latents, noise, t)
        return x_t, t, self.text_states[caption], self.scheduler.get_velocity(latents, noise, t)

    def training_step(self, batch: int, batch_idx: int) -> Tensor:
        x_t, t, text, target = (part.to(self.device) for part in self.noised(self.step_generator()))
        loss = F.mse_loss(self.unet(x_t, t, text).sample, target)
        self.log("loss", loss, prog_bar=True)
        return loss

    def export(self) -> None:
        save_pipeline(self.unet, self.weights_dir / "base", self.export_dir)


def save_pipeline(unet: UNet2DConditionModel, parts: Path, folder: Path) -> None:
    """Writes a StableDiffusionPipeline folder in half precision; `parts` holds text_encoder, tokenizer and vae."""
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderTiny.from_pretrained(parts / "vae", torch_dtype=torch.float16),
        text_encoder=CLIPTextModel.from_pretrained(parts / "text_encoder", dtype=torch.float16),
        tokenizer=CLIPTokenizer.from_pretrained(parts / "tokenizer"),
        unet=unet.to(torch.float16),
        scheduler=ddim_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    name_tensors_for_both(folder / "text_encoder" / "model.safetensors")
    save_tokenizer(pipeline.tokenizer, folder / "tokenizer")
    # transformers loads in the dtype that the config names, diffusers in float32; one pipeline needs one dtype
    config = folder / "text_encoder" / "config.json"
    write_json(config, read_json(config) | {"dtype": "float32"})
