"""The stage that trains the miniature flow model: what it learns from, and what it exports."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import JointAttnProcessor2_0

from src.mini.evaluate import WEIGHTS, sample
from src.mini.flow import FlowStage, JointAttentionWithZeros
from src.mini.gold_card import pool_moments
from src.policy.diffusion import DiffusionPolicy
from src.tasks.best_of_n import Pool


@pytest.fixture(scope="module")
def stage(tmp_path_factory) -> FlowStage:
    """On four made-up pictures, for the real ones are fetched."""
    data = tmp_path_factory.mktemp("emoji")
    names = '["cat", "dog", "zebra", "apple"]'
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 64, 64), dtype=np.uint8)
    concept, style = np.arange(4), np.zeros(4, dtype=int)
    np.savez(data / "emoji64.npz", images=images, concept=concept, style=style, names=names, num_animals=3)
    draws = {"bank_views": 2, "augmentation": 0.5, "prompt_share": 0.7, "drop_caption": 0.1, "styled": 0.4}
    run = {"steps": 2, "batch_size": 8, "lr": 1e-3, "seed": 0, "export_dir": str(data / "flow")}
    stage = FlowStage(width=136, layers=4, heads=4, data_dir=str(data), weights_dir=str(WEIGHTS), **draws, **run)
    torch.manual_seed(0)
    for parameter in stage.transformer.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)  # what is zero at first would hide the rest
    return stage


def with_processor(stage: FlowStage, processor: type) -> None:
    for block in stage.transformer.transformer_blocks:
        block.attn.set_processor(processor())


@pytest.mark.parametrize("zeros", [0, 1, 7, 256])
@torch.no_grad()
def test_one_token_stands_for_any_number_of_zeros(zeros, stage):
    """As StableDiffusion3Pipeline appends them."""
    x, t = torch.randn(3, 4, 16, 16), torch.tensor([10.0, 500.0, 999.0])
    states, pooled = stage.text_states[:3], stage.pooled[:3]
    log_zeros = torch.full((3,), math.log(zeros) if zeros else -torch.inf)
    with_processor(stage, JointAttentionWithZeros)
    once = stage.transformer(x, states, pooled, t, joint_attention_kwargs={"log_zeros": log_zeros}).sample
    with_processor(stage, JointAttnProcessor2_0)
    padded = torch.cat([states[:, :-1], torch.zeros(3, zeros, states.shape[-1])], 1)
    torch.testing.assert_close(once, stage.transformer(x, padded, pooled, t).sample, atol=1e-4, rtol=1e-4)
    with_processor(stage, JointAttentionWithZeros)


def test_times_are_logit_normal_and_spread_over_each_batch(stage):
    rng = torch.Generator().manual_seed(0)
    logits = torch.cat([stage.times(rng).logit() for _ in range(2000)])
    assert abs(logits.mean()) < 0.02 and abs(logits.std() - 1) < 0.02
    quantiles = torch.special.ndtr(stage.times(rng).logit())
    assert [int(8 * q) for q in quantiles] == list(range(8))


def test_the_loss_is_that_of_rectified_flow(stage, monkeypatch):
    """Zero for a network that gives noise - x_0, seen through x_t = (1 - t) x_0 + t noise."""
    stage.setup("fit")
    told = {}
    monkeypatch.setattr(stage, "log", lambda *args, **kwargs: None)
    monkeypatch.setattr(stage, "step_generator", lambda: torch.Generator().manual_seed(3))
    rng = torch.Generator().manual_seed(3)
    latents, caption = stage.draw(rng)
    noise = torch.randn(latents.shape, generator=rng)

    def network(x_t, states, pooled, t, **kwargs):
        told.update(x_t=x_t, states=states, pooled=pooled, t=t / 1000)
        return (noise - latents,)

    monkeypatch.setattr(stage.transformer, "forward", network)
    assert stage.training_step(0, 0).item() == 0
    t = told["t"].view(-1, 1, 1, 1)
    torch.testing.assert_close(told["x_t"], (1 - t) * latents + t * noise)
    assert torch.equal(told["states"], stage.text_states[caption]) and torch.equal(
        told["pooled"], stage.pooled[caption]
    )


def test_what_it_exports_is_small_and_drawn_from_by_diffusers_and_by_a_policy(stage):
    stage.export()
    folder = stage.export_dir
    assert sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file()) < 9e6
    with_processor(stage, JointAttnProcessor2_0)
    pictures = sample(folder, ["cat", "dog"], steps=2, guidance=1.0)
    assert pictures.shape == (2, 3, 64, 64) and pictures.std() > 0
    options = {"finetune": "lora", "num_steps": 2, "guidance": 1.0, "sampling_batch": 2, "sde": "cps", "eta": 0.8}
    policy = DiffusionPolicy(str(folder), **options)  # with as many zeros as diffusers
    start = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    policy.noise = lambda seeds, starts=None: start[:, None].expand(-1, 3, -1, -1, -1)
    with policy.sampling(eta=0.0):
        torch.testing.assert_close(policy.sample(["cat", "dog"], [0, 1]).images, pictures, atol=1e-3, rtol=0)


def test_moments_of_the_base_are_of_its_pool():
    pool = Pool({"hps": torch.tensor([[1.0, 3.0], [5.0, 9.0]]), "gold": torch.zeros(2, 2)}, [], [])
    assert pool_moments(pool, ["hps"]) == {"hps": {"mean": 4.5, "std": 2.236}}  # sqrt((2 + 8) / 2)
