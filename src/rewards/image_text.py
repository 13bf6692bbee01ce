"""ImageReward's class of model (Xu et al. 2023, arXiv 2304.05977): a text encoder that sees the picture, and an MLP.

The prompt's tokens attend to the picture's patches by cross-attention (BLIP); an MLP reads the first token's state.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer, CLIPVisionConfig, CLIPVisionModel
from transformers.models.blip.configuration_blip import BlipTextConfig
from transformers.models.blip.modeling_blip_text import BlipTextModel

from src.files import write_json
from src.hub import MOMENTS, TOKENIZER, fetch, fill, load_strictly, load_tokenizer, read_json
from src.rewards.base import Images, RewardModel, tower_input
from src.saving import save_tokenizer
from src.texts import longer_than


class ImageTextReward(RewardModel):
    """MLP on the first token of a text encoder with cross-attention to the picture's patches.

    Args:
        path: folder with config.json (vision, text, head), model.safetensors and a CLIP tokenizer.
    """

    mean: Tensor
    std: Tensor
    max_tokens: int  # of a prompt

    def __init__(self, path: str):
        super().__init__()
        folder = fetch(path, "reward path", ["config.json", "model.safetensors", "tokenizer_config.json"], TOKENIZER)
        option = f"reward path={path}"
        config = read_json(folder / "config.json", option, ("vision", "text", "head", *MOMENTS))
        self._build(config, load_tokenizer(CLIPTokenizer, folder, "reward path"))
        fill(self, folder / "model.safetensors", option)
        self.requires_grad_(False).eval()

    def _build(self, config: dict, tokenizer: CLIPTokenizer) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.vision = CLIPVisionModel(CLIPVisionConfig(**config["vision"]))
        self.text = BlipTextModel(BlipTextConfig(**config["text"]), add_pooling_layer=False)
        widths = [self.text.config.hidden_size, *config["head"], 1]
        layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
        self.head = nn.Sequential(*layers)  # no activation in between, as published
        self.max_tokens = self.text.config.max_position_embeddings
        vision = self.vision.config
        self._prepare(vision.image_size, vision.hidden_size, config["image_mean"], config["image_std"], torch.float32)

    def _prepare(
        self, size: int, width: int, mean: Sequence[float], std: Sequence[float], tower_dtype: torch.dtype
    ) -> None:
        self.image_size, self.embed_dim, self.tower_dtype = size, width, tower_dtype
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def patches(self, images: Images) -> Float[Tensor, "b patch d"]:
        """States of the vision tower for pictures in [0, 1], the class token's first."""
        pixels = tower_input(images, self.image_size, self.mean, self.std)
        return self.vision(pixel_values=pixels.to(self.tower_dtype)).last_hidden_state

    def embed_images(self, images: Images) -> Float[Tensor, "b d"]:
        """Unit-length states of the picture's class token."""
        return F.normalize(self._float(self.patches(images)[:, 0]), dim=-1)

    def forward(self, images: Images, prompts: Sequence[str]) -> Float[Tensor, " b"]:
        return self.read(self.patches(images), prompts)

    def read(self, patches: Float[Tensor, "b patch d"], prompts: Sequence[str]) -> Float[Tensor, " b"]:
        """Scores from the picture tower's states."""
        tokens = self.tokenizer(
            list(prompts), padding="max_length", max_length=self.max_tokens, truncation=True, return_tensors="pt"
        ).to(self.device)
        seen = self.text(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            encoder_hidden_states=patches,
            return_dict=True,
        ).last_hidden_state
        return self.head(self._float(seen[:, 0])).squeeze(-1)

    def too_long(self, prompts: Sequence[str]) -> list[str]:
        return longer_than(self.max_tokens, self.tokenizer, prompts)

    def _float(self, states: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        return states if self.tower_dtype == torch.float32 else states.float()

    def learnable(self) -> list[nn.Parameter]:
        """All of it."""
        return list(self.parameters())

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", self.config)
        save_file(
            {key: value.half().contiguous() for key, value in self.state_dict().items()}, folder / "model.safetensors"
        )
        save_tokenizer(self.tokenizer, folder)


class FreshImageTextReward(ImageTextReward):
    """One to be trained: the picture's tower and the words' embeddings from a CLIP pair, the rest from scratch.

    Args:
        clip: CLIPModel folder. text_layers: of the text encoder. head: hidden widths of the MLP.
        seed: of the first weights.
    """

    def __init__(self, clip: str, text_layers: int, head: list[int], seed: int):
        RewardModel.__init__(self)
        pair = load_strictly(CLIPModel, Path(clip), f"reward clip={clip}")
        vision, words = pair.vision_model, pair.text_model.get_input_embeddings()
        width = words.embedding_dim
        tokenizer = load_tokenizer(CLIPTokenizer, Path(clip), "reward clip")
        processor = read_json(Path(clip) / "preprocessor_config.json", f"reward clip={clip}", MOMENTS)
        shape = (
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "image_size",
            "patch_size",
        )
        text = {
            "vocab_size": words.num_embeddings,
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": text_layers,
            "num_attention_heads": max(1, width // 32),
            "max_position_embeddings": tokenizer.model_max_length,
            "encoder_hidden_size": vision.config.hidden_size,
            "is_decoder": True,  # transformers gives only these layers cross-attention; attention stays bidirectional
            "bos_token_id": tokenizer.bos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        }
        config = {
            "vision": {name: getattr(vision.config, name) for name in shape},
            "text": text,
            "head": head,
            "image_mean": processor["image_mean"],
            "image_std": processor["image_std"],
        }
        torch.manual_seed(seed)
        self._build(config, tokenizer)
        self.vision.load_state_dict(vision.state_dict())
        self.text.get_input_embeddings().load_state_dict(words.state_dict())
