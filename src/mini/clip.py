"""The CLIP pair of the miniature world, trained from scratch on all pictures and their captions."""

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextModel

from src.mini.captions import MAX_TOKENS, captions, tokenize, train_tokenizer
from src.mini.data import IMAGE_SIZE, augment, to_float
from src.mini.stage import Stage
from src.saving import save_text_encoder, save_tokenizer


def photometric(images: Float[Tensor, "b 3 h w"], rng: torch.Generator) -> Float[Tensor, "b 3 h w"]:
    """Random brightness, contrast, saturation, and, for half of the pictures each, noise and an erased square."""
    b, _, h, w = images.shape
    factor = lambda spread: 1 + spread * (2 * torch.rand(b, 1, 1, 1, generator=rng) - 1)  # noqa: E731
    images = images * factor(0.2)
    mean = images.mean((1, 2, 3), keepdim=True)
    images = mean + (images - mean) * factor(0.3)
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * factor(0.4)
    noisy = (torch.rand(b, 1, 1, 1, generator=rng) < 0.5) * 0.1 * torch.rand(b, 1, 1, 1, generator=rng)
    images = images + noisy * torch.randn(images.shape, generator=rng)
    size = torch.randint(8, 25, (b, 1, 1), generator=rng) * (torch.rand(b, 1, 1, generator=rng) < 0.5)
    top, left = (torch.randint(0, n, (b, 1, 1), generator=rng) for n in (h, w))
    rows, columns = torch.arange(h)[None, :, None], torch.arange(w)[None, None, :]
    erased = (rows >= top) & (rows < top + size) & (columns >= left) & (columns < left + size)
    return torch.where(erased[:, None], torch.rand(b, 3, 1, 1, generator=rng), images).clamp(0, 1)


class CLIPStage(Stage):
    """Symmetric InfoNCE over batches in which no concept occurs twice.

    Args:
        export_dir: of the pair. for_pipeline: whether its text tower becomes the base model's text encoder.
    """

    def __init__(
        self,
        *,
        width: int,
        projection: int,
        text_layers: int,
        vision_layers: int,
        vocab_size: int,
        export_dir: str,
        for_pipeline: bool,
        **kw,
    ):
        super().__init__(**kw)
        self.export_dir, self.for_pipeline = Path(export_dir), for_pipeline
        torch.manual_seed(self.seed)
        self.tokenizer = train_tokenizer(self.emoji.names, vocab_size)
        tower = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 32}
        text = tower | {
            "vocab_size": len(self.tokenizer),
            "num_hidden_layers": text_layers,
            "max_position_embeddings": MAX_TOKENS,
            "bos_token_id": self.tokenizer.bos_token_id,
            "eos_token_id": self.tokenizer.eos_token_id,
            "pad_token_id": self.tokenizer.pad_token_id,
        }
        vision = tower | {"num_hidden_layers": vision_layers, "image_size": IMAGE_SIZE, "patch_size": 8}
        self.clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection))
        per_picture = zip(self.emoji.concept.tolist(), self.emoji.style.tolist(), strict=True)
        texts = [captions(self.emoji.names[concept], style) for concept, style in per_picture]
        self.tokens = torch.stack([tokenize(self.tokenizer, options) for options in texts])  # picture x caption x token
        self.pictures_of = [
            torch.nonzero(self.emoji.concept == c).flatten().tolist() for c in range(len(self.emoji.names))
        ]

    def _draw(self, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        concepts = torch.randperm(len(self.pictures_of), generator=rng)[: self.batch_size].tolist()
        # animals matter most: half of every batch
        animals = torch.randperm(self.emoji.num_animals, generator=rng)[: self.batch_size // 2].tolist()
        others = [c for c in concepts if c >= self.emoji.num_animals][: self.batch_size - len(animals)]
        chosen = [self.pictures_of[c] for c in animals + others]
        which = torch.rand(len(chosen), generator=rng).tolist()
        index = torch.tensor([options[int(u * len(options))] for options, u in zip(chosen, which, strict=True)])
        caption = torch.randint(self.tokens.shape[1], (len(index),), generator=rng)
        return index, self.tokens[index, caption]

    def training_step(self, batch: int, batch_idx: int) -> Tensor:
        rng = self.step_generator()
        index, tokens = self._draw(rng)
        images = photometric(augment(to_float(self.emoji.images[index]), rng, strength=1.5), rng) * 2 - 1
        output = self.clip(input_ids=tokens.to(self.device), pixel_values=images.to(self.device))
        logits = output.logits_per_image.float()
        target = torch.arange(len(logits), device=logits.device)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        accuracy = (logits.argmax(1) == target).float().mean()
        self.log_dict({"loss": loss, "batch_top1": accuracy}, prog_bar=True)
        return loss

    def export(self) -> None:
        """Saves the pair for the reward, and the text tower and tokenizer for the pipeline."""
        clip = self.clip.half()
        processor = CLIPImageProcessor(
            size={"shortest_edge": IMAGE_SIZE},
            crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        )
        for part in (clip, processor):
            part.save_pretrained(self.export_dir)
        save_tokenizer(self.tokenizer, self.export_dir)
        if not self.for_pipeline:
            return
        text = CLIPTextModel(clip.config.text_config)
        text.load_state_dict(clip.text_model.state_dict())
        save_text_encoder(text.half(), self.weights_dir / "base" / "text_encoder")
        save_tokenizer(self.tokenizer, self.weights_dir / "base" / "tokenizer")
