"""Captions of the miniature world and the tokenizer trained on them."""

import json
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer, models, trainers
from transformers import CLIPTokenizer

from src.mini.data import STYLES

MAX_TOKENS = 16


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def captions(name: str, style: int) -> list[str]:
    """Every caption of a picture: without its style first, then with it."""
    word = STYLES[style]
    return [*plain_captions(name), _article(f"{word} {name}"), f"{name}, {word} style"]


def plain_captions(name: str) -> list[str]:
    """`cat`, `a cat`, `a picture of a cat`."""
    return [name, _article(name), f"a picture of {_article(name)}"]


def all_captions(names: Sequence[str]) -> list[str]:
    """Every caption that can occur, each once, in a fixed order; the empty one first."""
    found = {"": None} | {text: None for name in names for s in range(len(STYLES)) for text in captions(name, s)}
    return list(found)


def train_tokenizer(names: Sequence[str], vocab_size: int) -> CLIPTokenizer:
    """A CLIP tokenizer (byte-level BPE, `</w>` at word ends) fitted to the captions."""
    reference = CLIPTokenizer().backend_tokenizer  # only for its normaliser and pre-tokenizer
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    bpe.normalizer, bpe.pre_tokenizer = reference.normalizer, reference.pre_tokenizer
    specials = ["<|startoftext|>", "<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials,
        end_of_word_suffix="</w>",
        initial_alphabet=list("abcdefghijklmnopqrstuvwxyz0123456789-,.'"),
        show_progress=False,
    )
    bpe.train_from_iterator(all_captions(names), trainer)
    state = _bpe_state(bpe)
    return CLIPTokenizer(vocab=state["vocab"], merges=state["merges"], model_max_length=MAX_TOKENS)


def _bpe_state(tokenizer: Tokenizer) -> dict:
    model = json.loads(tokenizer.to_str())["model"]
    return {"vocab": model["vocab"], "merges": [tuple(pair) for pair in model["merges"]]}


def tokenize(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> torch.Tensor:
    """Token ids [len(texts), MAX_TOKENS], padded as StableDiffusionPipeline pads them."""
    padded = tokenizer(list(texts), padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
    return padded.input_ids
