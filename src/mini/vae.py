"""The latent space of the miniature world: an AutoencoderTiny, 64x64 pictures <-> 16x16x4 latents."""

import torch
from diffusers import AutoencoderTiny
from jaxtyping import Float
from torch import Tensor

from src.mini.data import augment, to_float
from src.mini.stage import Stage


def edges(images: Float[Tensor, "b c h w"]) -> tuple[Tensor, Tensor]:
    """Horizontal and vertical differences of neighbouring pixels."""
    return images.diff(dim=-1), images.diff(dim=-2)


class VAEStage(Stage):
    """Reconstruction of augmented pictures: L1 + MSE + L1 of image gradients, through latents with a little noise."""

    def __init__(self, *, width: int, encoder_blocks: list[int], decoder_blocks: list[int], latent_noise: float, **kw):
        super().__init__(**kw)
        self.latent_noise = latent_noise
        self.vae = AutoencoderTiny(
            encoder_block_out_channels=(width,) * len(encoder_blocks),
            decoder_block_out_channels=(width,) * len(decoder_blocks),
            num_encoder_blocks=tuple(encoder_blocks),
            num_decoder_blocks=tuple(decoder_blocks),
        ).to(memory_format=torch.channels_last)

    def training_step(self, batch: int, batch_idx: int) -> Tensor:
        rng = self.step_generator()
        index = torch.randint(len(self.emoji.images), (self.batch_size,), generator=rng)
        images = augment(to_float(self.emoji.images[index]), rng) * 2 - 1
        images = images.to(self.device, memory_format=torch.channels_last)
        latents = self.vae.encode(images).latents
        noise = torch.randn(latents.shape, generator=rng).to(latents)
        decoded = self.vae.decode(latents + self.latent_noise * noise).sample.float()
        error = decoded - images
        sharpness = sum(e.abs().mean() for e in edges(error))
        loss = error.abs().mean() + error.square().mean() + sharpness + 1e-3 * latents.float().square().mean()
        psnr = -10 * torch.log10(error.detach().square().mean() / 4)
        self.log_dict({"loss": loss, "psnr_db": psnr}, prog_bar=True)
        return loss

    @torch.no_grad()
    def export(self) -> None:
        """Saves the VAE with the scaling factor that gives its latents unit standard deviation."""
        rng = torch.Generator().manual_seed(self.seed)
        images = augment(to_float(self.emoji.animals().images), rng) * 2 - 1
        latents = self.vae.encode(images).latents.float()
        self.vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
        self.vae.half().save_pretrained(self.weights_dir / "base" / "vae")
