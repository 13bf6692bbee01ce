"""Weights and tokenizers written so that transformers 4 and 5 both read them; neither says a word when it cannot."""

from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file

TOWER = "text_model."  # what transformers 4 wants before every tensor of a CLIPTextModel, and 5 reads as well


def save_text_encoder(encoder: Any, folder: Path) -> None:
    """A CLIPTextModel as save_pretrained writes it, but for its tensors' names: transformers 5 writes bare ones."""
    encoder.save_pretrained(folder)
    name_tensors_for_both(folder / "model.safetensors")


def name_tensors_for_both(file: Path) -> None:
    """Gives the tensors of a saved CLIPTextModel the names that transformers 4 and 5 both read; values stay."""
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    tensors = {TOWER + key.removeprefix(TOWER): value for key, value in load_file(file).items()}
    renamed = file.with_suffix(".renamed")
    save_file(tensors, renamed, metadata)  # beside it, for the tensors lie in the file that is read
    renamed.replace(file)


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """A CLIP tokenizer as save_pretrained writes it, and the two files that CLIPTokenizer of transformers 4 reads."""
    tokenizer.save_pretrained(folder)
    tokenizer.backend_tokenizer.model.save(str(folder))  # vocab.json, merges.txt
