"""A diffusers pipeline as a policy sees it: a network, what it is conditioned on, a decoder, a sampler that fits."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from jaxtyping import Float, Int
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from src.errors import UserError
from src.policy.gaussian import Latents
from src.policy.sampler import Sampler, Times
from src.texts import longer_than

Config = dict[str, Any]
TOGETHER = "give parts that belong together."


class Pipeline:
    """Base of the families of pipelines.

    Args:
        parts: modules, tokenizers and the scheduler by their names in the pipeline.
        option: what messages call it.
        resolution: of pictures, in pixels; null for what the network was trained with.
    """

    kind: ClassVar[type[DiffusionPipeline]]
    network_name: ClassVar[str] = "unet"
    texts: ClassVar[tuple[str, ...]] = ("",)  # suffixes of tokenizers and text encoders
    optional: ClassVar[tuple[str, ...]] = ()  # those of them that a folder may lack
    lora_targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    side_multiple: ClassVar[int] = 1  # of a latent's side
    decodes_in_float32 = False  # whatever the precision of training

    def __init__(self, parts: dict[str, Any], option: str, resolution: int | None = None):
        self.parts, self.option = parts, option
        self.factor = 2 ** (len(parts["vae"].config.block_out_channels) - 1)  # pixels a latent's side
        multiple = self.factor * self.side_multiple
        if resolution is not None and (resolution < multiple or resolution % multiple):
            raise UserError(f"policy.resolution={resolution} must be a multiple of {multiple} pixels for {option}.")
        size = parts[self.network_name].config.sample_size
        self.size = size if resolution is None else resolution // self.factor

    @classmethod
    def check(cls, configs: dict[str, Config], option: str) -> None:
        """Raises UserError, before weights are fetched, on parts of no use or that do not belong together."""

    def sampler(self, num_steps: int, level: float, sde: str) -> Sampler:
        """The Markov chain that its network is for.

        Args:
            num_steps: of a trajectory.
            level: how much noise a step draws; the policy's eta.
            sde: of flow matching, which process; nothing to DDIM.
        """
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------------- conditioning

    def encode(self, prompt: str, device: torch.device) -> tuple[Tensor, ...]:
        """Of one prompt, by itself: its token states, then what else the network is told of it; no batch axis."""
        raise NotImplementedError

    def tokens(self, prompt: str, suffix: str, length: int, device: torch.device) -> Int[Tensor, "1 token"]:
        """The ids of one prompt, cut or padded to `length`, by the tokenizer of that suffix."""
        tokenizer = self.parts[f"tokenizer{suffix}"]
        told = tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        return told.input_ids.to(device)

    @property
    def text_width(self) -> int:
        """Of a token's state."""
        raise NotImplementedError

    @property
    def max_tokens(self) -> int:
        """Of a prompt that some text encoder sees."""
        return self.parts["tokenizer"].model_max_length

    def too_long(self, prompts: Sequence[str]) -> list[str]:
        """The prompts whose end no text encoder sees."""
        return longer_than(self.max_tokens, self.parts["tokenizer"], prompts)

    # ------------------------------------------------------------------------------------------ network and decoder

    def forward(self, network: nn.Module, x_t: Latents, t: Times, told: Sequence[Tensor]) -> Latents:
        """The network's output."""
        raise NotImplementedError

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return (self.parts[self.network_name].config.in_channels, self.size, self.size)

    def decode(self, latents: Latents) -> Float[Tensor, "b 3 H W"]:
        """What the decoder makes of them, in -1 to 1."""
        vae, config = self.parts["vae"], self.parts["vae"].config
        latents = latents / config.scaling_factor
        if getattr(config, "shift_factor", None):
            latents = latents + config.shift_factor
        if not self.decodes_in_float32:
            return vae.decode(latents.to(vae.dtype), return_dict=False)[0]
        with torch.autocast(latents.device.type, enabled=False):
            return vae.decode(latents.float(), return_dict=False)[0]

    # ------------------------------------------------------------------------------------------------------- saving

    def save_lora(self, network: Any, folder: Path) -> None:
        """In the format of `pipe.load_lora_weights`."""
        layers = {
            f"{self.network_name}_lora_layers": get_peft_model_state_dict(network),
            # alpha is not in the weights
            f"{self.network_name}_lora_adapter_metadata": network.peft_config["default"].to_dict(),
        }
        self.kind.save_lora_weights(folder, **layers)
