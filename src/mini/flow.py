"""The flow model of the miniature world: a small Stable Diffusion 3, trained by rectified flow on animals.

Esser et al. 2024 (arXiv 2403.03206): x_t = (1 - t) x_0 + t noise, the network gives v = noise - x_0, and t is drawn
from a logit-normal distribution. Latents, captions and draws are those of the UNet; the text encoders are the text
towers of the shipped CLIP pairs, untouched.

A StableDiffusion3Pipeline without a T5 appends zeros where its states would be, 256 tokens unless it is told otherwise
(max_sequence_length). They are alike and stay alike in every layer, so that n of them are one whose attention logits
are raised by log n: the network learns with n = 0 to 256, and draws as well with any number.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.models.attention_processor import Attention
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTextModelWithProjection, CLIPTokenizer

from src.files import read_json, write_json
from src.mini.captions import tokenize
from src.mini.latents import LatentStage
from src.policy.half_precision import suited_attention
from src.saving import save_tokenizer

TOWERS = ("clip", "clip_narrow")  # CLIP pairs whose text towers are text_encoder and text_encoder_2
ZEROS = 256  # of a missing T5's states, by default


def flow_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """No shift, for latents are small; the last step starts at t = 0.1, where ten even steps would have it.

    By default diffusers' last step starts at t = 0.001, and does next to nothing.
    """
    return FlowMatchEulerDiscreteScheduler(shift=1.0, shift_terminal=0.1)


class FlowStage(LatentStage):
    """Rectified flow.

    Args:
        width, layers, heads: of the transformer, whose patches are 2 x 2 latents.
    """

    def __init__(self, *, width: int, layers: int, heads: int, **kw):
        super().__init__(**kw)
        encoders = [text_tower(self.weights_dir / name) for name in TOWERS]
        self._embed_captions(encoders)
        torch.manual_seed(self.seed)
        self.transformer = SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=layers,
            num_attention_heads=heads,
            attention_head_dim=width // heads,
            caption_projection_dim=width,
            joint_attention_dim=self.text_states.shape[-1],
            pooled_projection_dim=self.pooled.shape[-1],
            pos_embed_max_size=8,
            qk_norm="rms_norm",
        )
        for block in self.transformer.transformer_blocks:
            block.attn.set_processor(JointAttentionWithZeros())

    @torch.no_grad()
    def _embed_captions(self, encoders: list[CLIPTextModelWithProjection]) -> None:
        """As StableDiffusion3Pipeline does, with one token of zeros at the end."""
        states, pooled = [], []
        for encoder, name in zip(encoders, TOWERS, strict=True):
            tokens = tokenize(CLIPTokenizer.from_pretrained(self.weights_dir / name), self.captions)
            output = encoder(tokens, output_hidden_states=True)
            states.append(output.hidden_states[-2])
            pooled.append(output.text_embeds)
        self.text_states = F.pad(torch.cat(states, -1), (0, 0, 0, 1))
        self.pooled = torch.cat(pooled, -1)

    def times(self, rng: torch.Generator) -> Float[Tensor, " b"]:
        """sigmoid of a standard normal; each row from its own part of the distribution, which spares noise."""
        places = (torch.arange(self.batch_size) + torch.rand(self.batch_size, generator=rng)) / self.batch_size
        return torch.special.ndtri(places.clamp(1e-6, 1 - 1e-6)).sigmoid()

    def zeros(self, rng: torch.Generator) -> Float[Tensor, " b"]:
        """log of how many tokens of zeros a row has: none, or 1 to 256, evenly in the logarithm."""
        some = math.log(ZEROS) * torch.rand(self.batch_size, generator=rng)
        return torch.where(torch.rand(self.batch_size, generator=rng) < 0.5, -torch.inf, some)

    def training_step(self, batch: int, batch_idx: int) -> Tensor:
        rng = self.step_generator()
        latents, caption = self.draw(rng)
        noise, t = torch.randn(latents.shape, generator=rng), self.times(rng)
        x_t = torch.lerp(latents, noise, t.view(-1, 1, 1, 1))
        zeros = self.zeros(rng)
        rows = (x_t, self.text_states[caption], self.pooled[caption], 1000 * t)
        with suited_attention(self.transformer, self.device):
            v = self.transformer(
                *(part.to(self.device) for part in rows),
                joint_attention_kwargs={"log_zeros": zeros.to(self.device)},
                return_dict=False,
            )[0]
        loss = F.mse_loss(v, (noise - latents).to(v))
        self.log("loss", loss, prog_bar=True)
        return loss

    def export(self) -> None:
        save_pipeline(self.transformer, self.weights_dir, self.export_dir)


class JointAttentionWithZeros:
    """diffusers' JointAttnProcessor2_0, its last key counted exp(log_zeros) times."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Float[Tensor, "b image d"],
        encoder_hidden_states: Float[Tensor, "b text d"],
        attention_mask: Tensor | None = None,
        *,
        log_zeros: Float[Tensor, " b"],
    ) -> tuple[Tensor, Tensor]:
        def heads(states: Tensor, linear: nn.Module, norm: nn.Module | None) -> Tensor:
            split = linear(states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            return split if norm is None else norm(split)

        image, text = hidden_states, encoder_hidden_states
        query = torch.cat([heads(image, attn.to_q, attn.norm_q), heads(text, attn.add_q_proj, attn.norm_added_q)], 2)
        key = torch.cat([heads(image, attn.to_k, attn.norm_k), heads(text, attn.add_k_proj, attn.norm_added_k)], 2)
        value = torch.cat([heads(image, attn.to_v, None), heads(text, attn.add_v_proj, None)], 2)
        bias = torch.zeros(len(image), 1, 1, key.shape[2], device=key.device, dtype=key.dtype)
        bias[..., -1] = log_zeros.view(-1, 1, 1)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias).transpose(1, 2).flatten(2)
        of_image, of_text = mixed.split([image.shape[1], text.shape[1]], 1)
        return attn.to_out[0](of_image), of_text if attn.context_pre_only else attn.to_add_out(of_text)


def text_tower(folder: Path) -> CLIPTextModelWithProjection:
    """Of a CLIPModel folder, float32."""
    clip = CLIPModel.from_pretrained(folder, dtype=torch.float32)
    config = clip.config.text_config
    config.projection_dim = clip.config.projection_dim
    tower = CLIPTextModelWithProjection(config).eval()
    tower.text_model.load_state_dict(clip.text_model.state_dict())
    tower.text_projection.load_state_dict(clip.text_projection.state_dict())
    return tower


def save_pipeline(transformer: SD3Transformer2DModel, weights: Path, folder: Path) -> None:
    """Writes a StableDiffusion3Pipeline folder in half precision; `weights` holds the other parts."""
    encoders = [text_tower(weights / name).to(torch.float16) for name in TOWERS]
    tokenizers = [CLIPTokenizer.from_pretrained(weights / name) for name in TOWERS]
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer.to(torch.float16),
        scheduler=flow_scheduler(),
        vae=AutoencoderTiny.from_pretrained(weights / "base" / "vae", torch_dtype=torch.float16),
        text_encoder=encoders[0],
        tokenizer=tokenizers[0],
        text_encoder_2=encoders[1],
        tokenizer_2=tokenizers[1],
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipeline.save_pretrained(folder)
    for suffix, tokenizer in zip(("", "_2"), tokenizers, strict=True):
        save_tokenizer(tokenizer, folder / f"tokenizer{suffix}")
        # transformers loads in the dtype that the config names, diffusers in float32; one pipeline needs one dtype
        config = folder / f"text_encoder{suffix}" / "config.json"
        write_json(config, read_json(config) | {"dtype": "float32"})
