"""The gold annotator: the truth of the miniature world, by which every run is judged and on which none is trained.

In the tradition of Gao et al. 2023 (arXiv 2210.10760): it labels the comparisons from which the proxy rewards learn.
Several classifiers, over all animals and "no such picture", learnt on real pictures and on broken ones how likely it
is that a picture is a sound one of its subject (src/mini/gold_stage.py).
"""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import ResNetForImageClassification

from src.errors import UserError
from src.hub import load_strictly, read_json
from src.mini.data import IMAGE_SIZE
from src.rewards.base import Images, RewardModel, tower_input

WORD = re.compile(r"[\w-]+")  # a prompt may be a sentence
LIMIT = 8.0  # |U| beyond this says nothing more


def utility(logits: Float[Tensor, "k b n"], subject: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """U = mean over the k members of log p(subject) - log(1 - p(subject)), each clipped to +-8."""
    log_p = logits.log_softmax(-1)
    index = subject.expand(len(logits), -1)[..., None]
    chosen = log_p.gather(-1, index)[..., 0]
    others = log_p.scatter(-1, index, -torch.inf).logsumexp(-1)
    return (chosen - others).clamp(-LIMIT, LIMIT).mean(0)


def subject(prompt: str, names: Sequence[str]) -> int:
    """Index of the longest of the names that a prompt contains. Raises UserError if it contains none."""
    words = f" {' '.join(WORD.findall(prompt.lower()))} "
    found = [name for name in names if f" {name} " in words]
    if not found:
        raise UserError(
            f"the judges of the miniature world know no animal of the prompt {prompt!r}{_meant(words.split(), names)}: "
            f"name one of its {len(names)} animals (docs/world.md lists them), or leave the judges out "
            "(suite.judges=null)."
        )
    return names.index(max(found, key=len))


def _meant(words: Sequence[str], names: Sequence[str]) -> str:
    """A question after the name that was probably meant, as by a plural or a slip; empty where none is near."""
    likeness = {
        name: max(difflib.SequenceMatcher(None, word, name).ratio() for word in words or [""]) for name in names
    }
    nearest = max(names, key=lambda name: likeness[name])
    return f" (did you mean {nearest}?)" if likeness[nearest] > 0.7 else ""


def home_size(images: Images) -> Float[Tensor, "b 3 64 64"]:
    """Pictures in the size that the miniature world's classifiers have learnt; its own are left as they are."""
    zero, one = torch.zeros(3, 1, 1, device=images.device), torch.ones(3, 1, 1, device=images.device)
    return tower_input(images, IMAGE_SIZE, zero, one)


class GoldAnnotator(RewardModel):
    """U(picture, prompt): alignment and fidelity in one, in nats; 0 where subject and its absence are equally likely.

    Args:
        path: folder with one sub-folder a member, each a transformers ResNetForImageClassification whose last class is
            "no such picture". A prompt's subject is the longest class name that it contains.
    """

    def __init__(self, path: str):
        super().__init__()
        folders = sorted(folder.parent for folder in Path(path).glob("*/config.json"))
        if not folders:
            raise UserError(
                f"gold path={path}: no members there (sub-folders with config.json and model.safetensors); "
                "give a folder with some."
            )
        self.members = torch.nn.ModuleList(
            load_strictly(ResNetForImageClassification, folder, f"gold path={folder}") for folder in folders
        )
        labels = read_json(folders[0] / "config.json", f"gold path={path}", ["id2label"])["id2label"]
        self.names = [labels[str(k)] for k in range(len(labels) - 1)]

    def check_prompts(self, prompts: Sequence[str]) -> None:
        for prompt in prompts:
            subject(prompt, self.names)

    def logits(self, images: Images) -> Float[Tensor, "k b n"]:
        """Of each of the k members, of pictures in [0, 1]; the last class is `none of them`."""
        pixels = home_size(images) * 2 - 1
        return torch.stack([member(pixels).logits for member in self.members])

    @torch.no_grad()
    def judge(self, images: Images, concept: Int[Tensor, " b"]) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """(U for the concepts, soundness: the log-odds that it is a picture of any animal, clipped likewise)."""
        logits = self.logits(images)
        log_p = logits.log_softmax(-1)
        soundness = log_p[..., :-1].logsumexp(-1) - log_p[..., -1]
        return utility(logits, concept), soundness.clamp(-LIMIT, LIMIT).mean(0)

    def forward(self, images: Images, prompts: Sequence[str]) -> Float[Tensor, " b"]:
        wanted = torch.tensor([subject(prompt, self.names) for prompt in prompts], device=images.device)
        return utility(self.logits(images), wanted)
