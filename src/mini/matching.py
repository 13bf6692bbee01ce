"""Image-text matching on real pictures, as BLIP is pretrained (Li et al. 2022, arXiv 2201.12086).

The miniature imagereward starts from it.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from src.mini.captions import captions
from src.mini.clip import photometric
from src.mini.data import augment, to_float
from src.mini.stage import Stage
from src.rewards.image_text import FreshImageTextReward


class MatchingStage(Stage):
    """Which of `candidates` captions is the picture's? Cross-entropy over the model's scores; animals only.

    Args:
        clip: CLIPModel folder that tower and words come from. text_layers, head: of the model.
        candidates: captions a picture, its own and those of other animals.
    """

    def __init__(self, *, clip: str, text_layers: int, head: list[int], candidates: int, export_dir: str, **kw):
        super().__init__(**kw)
        self.export_dir, self.candidates = Path(export_dir), candidates
        self.emoji = self.emoji.animals()
        self.model = FreshImageTextReward(clip, text_layers, list(head), self.seed).requires_grad_(True)

    def training_step(self, batch: int, batch_idx: int) -> Tensor:
        rng = self.step_generator()
        names = self.emoji.names
        index = torch.randint(len(self.emoji.images), (self.batch_size,), generator=rng)
        concept = self.emoji.concept[index]
        shift = 1 + torch.randint(len(names) - 1, (self.batch_size, self.candidates - 1), generator=rng)
        others = (concept[:, None] + shift) % len(names)  # never the picture's own
        asked = torch.cat([concept[:, None], others], 1)
        which = torch.randint(5, asked.shape, generator=rng)  # a style's caption fits whichever picture has the animal
        style = self.emoji.style[index]
        texts = [
            captions(names[c], s)[w]
            for row, s, ways in zip(asked.tolist(), style.tolist(), which.tolist(), strict=True)
            for c, w in zip(row, ways, strict=True)
        ]
        images = photometric(augment(to_float(self.emoji.images[index]), rng, strength=1.5), rng).to(self.device)
        patches = self.model.patches(images).repeat_interleave(self.candidates, 0)
        scores = self.model.read(patches, texts).view(self.batch_size, self.candidates)
        target = torch.zeros(self.batch_size, dtype=torch.long, device=scores.device)
        loss = F.cross_entropy(scores, target)
        self.log_dict({"loss": loss, "top1": (scores.argmax(1) == target).float().mean()}, prog_bar=True)
        return loss

    def export(self) -> None:
        self.model.save(self.export_dir)
