"""Do transformers 4 and 5 load the shipped weights to the same text states? `python -m benchmarks.transformers4`

Makes an environment with transformers 4 in a temporary folder (`--python` names one that is there), computes the same
things in it and here, and prints the largest differences. Exit code 1 where they exceed rounding.
Some 1.5 GB of disk and a package index are needed, no GPU and no hub.
"""

import argparse
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

WEIGHTS = Path(__file__).parent.parent / "src/mini/weights"
CLIPS = ("clip", "clip_narrow", "hps", "pickscore")  # CLIPModel folders
PROMPTS = ["cat", "a picture of a zebra", "an owl, flat style", "A 3D Fox", "rhinoceros", "läufer, 狗 and 🦊", ""]
OLD = ("transformers>=4.57,<5", "diffusers==0.35.2", "safetensors", "pillow", "numpy")
ROUNDING = 2e-5


def computed(weights: Path, clips: list[Path]) -> dict:
    """Tokens, text states, features and a picture by whichever versions this interpreter has."""
    import torch
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPModel, CLIPTokenizer

    torch.set_num_threads(1)
    found: dict = {}
    with torch.no_grad():
        pipe = StableDiffusionPipeline.from_pretrained(weights / "base", torch_dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        found["base: tokens"] = ids = tokens(pipe.tokenizer, pipe.text_encoder.config)
        found["base: text states"] = pipe.text_encoder(ids)[0]
        latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
        drawn = pipe(PROMPTS[:2], latents=latents, num_inference_steps=5, guidance_scale=1.0, output_type="pt")
        found["base: picture"] = drawn.images
        for folder in clips:
            clip = CLIPModel.from_pretrained(folder, dtype=torch.float32)
            words = CLIPTokenizer.from_pretrained(folder)
            found[f"{folder.name}: tokens"] = ids = tokens(words, clip.config.text_config)
            side = clip.config.vision_config.image_size
            pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
            found[f"{folder.name}: text features"] = pooled(clip.get_text_features(input_ids=ids))
            found[f"{folder.name}: image features"] = pooled(clip.get_image_features(pixel_values=pixels))
    return found


def tokens(tokenizer, config):
    length = config.max_position_embeddings
    padded = tokenizer(PROMPTS, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return padded.input_ids


def pooled(features):
    """transformers 5 gives the projected features in an output, 4 gives them bare."""
    return getattr(features, "pooler_output", features)


def differences(clips: list[Path], python: Path | None = None) -> dict[str, float]:
    """Largest absolute difference between transformers 4 and 5, by what was computed."""
    import torch

    from benchmarks.environments import new_environment

    with tempfile.TemporaryDirectory() as scratch:
        python = python or new_environment(Path(scratch) / "transformers4", OLD)
        results = []
        for name, interpreter in (("old", python), ("new", Path(sys.executable))):
            out = Path(scratch) / f"{name}.pt"
            command = [str(interpreter), str(Path(__file__)), "--write", str(out), *map(str, clips)]
            subprocess.run(command, check=True)
            results.append(torch.load(out, weights_only=True))
    old, new = results
    return {key: (old[key].double() - new[key].double()).abs().max().item() for key in new}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", nargs="*", type=Path, help="CLIPModel folders; the shipped ones unless told")
    parser.add_argument("--python", type=Path, help="interpreter of an environment with transformers 4")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    clips = asked.clips or [WEIGHTS / name for name in CLIPS]
    if asked.write:
        import torch

        warnings.simplefilter("ignore")
        torch.save(computed(WEIGHTS, clips), asked.write)
        return
    apart = differences(clips, asked.python)
    for key, value in apart.items():
        print(f"{key:30} {value:.1e}")
    sys.exit(int(max(apart.values()) > ROUNDING))


if __name__ == "__main__":
    main()
