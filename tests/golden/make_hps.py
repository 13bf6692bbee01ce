"""Writes hps.pt, a tiny CLIP of open_clip's own in the format that HPS was released in, and hps.json, its own scores.

`pip install open_clip_torch` with the torchvision of the installed torch, then `python -m tests.golden.make_hps`. It is
no dependency of the tests, because a torchvision that is not of torch's own build breaks transformers.
"""

import json
from pathlib import Path

import open_clip
import torch

from tests.released import CONTEXT, IMAGE_SIZE, PROMPTS, clip_tokenizer, pictures, stirred

HERE = Path(__file__).parent
VISION = {"image_size": IMAGE_SIZE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 14}
TEXT = {"context_length": CONTEXT, "vocab_size": 514, "width": 24, "heads": 3, "layers": 3}


def main() -> None:
    torch.manual_seed(0)
    model = stirred(open_clip.model.CLIP(embed_dim=16, vision_cfg=VISION, text_cfg=TEXT)).half().float()
    tokens = [ids + [0] * (CONTEXT - len(ids)) for ids in clip_tokenizer()(PROMPTS).input_ids]  # padded its way
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    pixels = (pictures(3, IMAGE_SIZE, IMAGE_SIZE) - mean) / std
    with torch.no_grad():
        image, text = (
            model.encode_image(pixels, normalize=True),
            model.encode_text(torch.tensor(tokens), normalize=True),
        )
    torch.save({"state_dict": {key: value.half() for key, value in model.state_dict().items()}}, HERE / "hps.pt")
    golden = {"open_clip": open_clip.__version__, "scores": (image * text).sum(-1).tolist()}
    (HERE / "hps.json").write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
