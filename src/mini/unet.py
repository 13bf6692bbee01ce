"""The denoiser of the miniature world: v-prediction on animals."""

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from jaxtyping import Float, Int
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from src.files import read_json, write_json
from src.mini.captions import all_captions, captions, plain_captions, tokenize
from src.mini.data import augment, to_float
from src.mini.stage import Stage
from src.prompts import SIMPLE_ANIMALS
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


class UNetStage(Stage):
    """Denoising of latents of augmented animals. A bank of `bank_views` augmentations a picture is encoded once."""

    def __init__(
        self,
        *,
        channels: list[int],
        layers_per_block: int,
        bank_views: int,
        augmentation: float,
        prompt_share: float,
        drop_caption: float,
        styled: float,
        export_dir: str,
        **kw,
    ):
        super().__init__(**kw)
        self.export_dir, self.augmentation = Path(export_dir), augmentation
        self.bank_views, self.prompt_share, self.drop_caption, self.styled = (
            bank_views, prompt_share, drop_caption, styled,
        )  # fmt: skip
        self.emoji = self.emoji.animals()
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
        ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._encode_captions(text_encoder, tokenizer)

    @torch.no_grad()
    def _encode_captions(self, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer) -> None:
        texts = all_captions(self.emoji.names)
        index = {text: i for i, text in enumerate(texts)}
        self.text_states = text_encoder(tokenize(tokenizer, texts)).last_hidden_state
        per_picture = zip(self.emoji.concept.tolist(), self.emoji.style.tolist(), strict=True)
        named = [(self.emoji.names[concept], style) for concept, style in per_picture]
        self.plain = torch.tensor([[index[t] for t in plain_captions(name)] for name, _ in named])
        self.with_style = torch.tensor([[index[t] for t in captions(name, s)[-2:]] for name, s in named])
        self.picture_weight = self._picture_weights()

    def _picture_weights(self) -> Float[Tensor, " n"]:
        """Each concept equally likely within its group; the group of prompts gets `prompt_share` of the draws."""
        size = torch.bincount(self.emoji.concept, minlength=len(self.emoji.names))
        prompted = torch.tensor([name in SIMPLE_ANIMALS for name in self.emoji.names])
        group = torch.where(prompted, self.prompt_share / prompted.sum(), (1 - self.prompt_share) / (~prompted).sum())
        return (group / size)[self.emoji.concept]

    @torch.no_grad()
    def setup(self, stage: str) -> None:
        vae = AutoencoderTiny.from_pretrained(self.weights_dir / "base" / "vae", torch_dtype=torch.float32)
        vae = vae.to(memory_format=torch.channels_last)
        rng = torch.Generator().manual_seed(self.seed)
        pictures = to_float(self.emoji.images)
        views = []
        for _ in range(self.bank_views):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                views.append(
                    vae.encode(augment(pictures, rng, self.augmentation) * 2 - 1).latents.half()
                    * vae.config.scaling_factor
                )
        self.bank = torch.stack(views)  # view x picture x 4 x 16 x 16

    def draw(self, rng: torch.Generator) -> tuple[Float[Tensor, "b 4 16 16"], Float[Tensor, "b token d"]]:
        """Latents and the text states of one of their captions."""
        index = torch.multinomial(self.picture_weight, self.batch_size, replacement=True, generator=rng)
        latents = self.bank[torch.randint(self.bank_views, index.shape, generator=rng), index].float()
        u = torch.rand(self.batch_size, generator=rng)
        plain = self.plain[index, torch.randint(self.plain.shape[1], index.shape, generator=rng)]
        styled = self.with_style[index, torch.randint(2, index.shape, generator=rng)]
        caption = torch.where(u < self.styled, styled, plain)
        caption = torch.where(u > 1 - self.drop_caption, 0, caption)  # caption 0 is the empty one
        return latents, self.text_states[caption]

    def noised(self, rng: torch.Generator) -> tuple[Tensor, Int[Tensor, " b"], Tensor, Tensor]:
        """(x_t, t, text states, v), v being the target of a v-prediction network."""
        latents, text = self.draw(rng)
        noise = torch.randn(latents.shape, generator=rng)
        t = torch.randint(self.scheduler.config.num_train_timesteps, (len(latents),), generator=rng)
        x_t = self.scheduler.add_noise(latents, noise, t)
        return x_t, t, text, self.scheduler.get_velocity(latents, noise, t)

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
        unet=unet.to(torch.float16),  # type: ignore[call-overload]
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
