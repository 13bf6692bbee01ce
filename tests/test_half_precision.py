"""Half precision on the CPU: attention in float32, layout, and the ratio of an unmoved policy."""

import pytest
import torch
import torch.nn.functional as F

from src.policy.half_precision import AttentionInFloat32, laid_out
from tests.test_policy import PROMPTS, SEEDS, log_probs, make_policy


@pytest.fixture
def heads() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, 3, 5, 8).bfloat16() for _ in range(3)]


@pytest.mark.parametrize("mask", [None, torch.linspace(0, 1, 25).view(5, 5).bfloat16(), torch.eye(5) < 1])
def test_attention_is_that_of_float32(heads, mask):
    exact = F.scaled_dot_product_attention(
        *(part.float() for part in heads), attn_mask=mask if mask is None or mask.dtype == torch.bool else mask.float()
    )
    query, key, value = heads
    with torch.autocast("cpu", torch.bfloat16), AttentionInFloat32():
        inside = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        named = F.scaled_dot_product_attention(query=query, key=key, value=value, attn_mask=mask)
        assert (query.float() @ key.float().transpose(-1, -2)).dtype == torch.bfloat16  # all else is left alone
    assert inside.dtype == torch.bfloat16
    assert torch.equal(inside, exact.bfloat16()) and torch.equal(named, inside)


def test_weights_that_are_held_for_a_while_get_the_layout_too_and_leave_the_own_ones_alone():
    policy = make_policy(finetune="full")
    own, held = (policy.unet.conv_in.weight.data, [p.detach().clone().contiguous() for p in policy.trainable()])
    with policy.holding(held):
        first = policy.sample(PROMPTS, SEEDS).latents
    with policy.holding([value.to(memory_format=torch.channels_last) if value.ndim == 4 else value for value in held]):
        assert torch.equal(policy.sample(PROMPTS, SEEDS).latents, first)
    assert policy.unet.conv_in.weight.data.data_ptr() == own.data_ptr()


def test_layout_follows_the_precision():
    network = torch.nn.Conv2d(4, 8, 3)
    laid_out(network, torch.device("cpu"))
    assert network.weight.is_contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        laid_out(network, torch.device("cpu"))
    assert network.weight.is_contiguous() and not network.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_policy_has_exact_ratios_and_gradients_near_those_of_float32(checkpointing):
    policy = make_policy(finetune="full", gradient_checkpointing=checkpointing).train()
    states = policy.sample(PROMPTS, SEEDS)
    gradients = []
    for half in (True, False):
        policy.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            own = policy.sample(PROMPTS, SEEDS)
            assert torch.equal((log_probs(policy, own, 0) - own.log_probs[:, 0]).exp(), torch.ones(3))
            log_probs(policy, states, 1).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in policy.trainable() if p.grad is not None]))
    half, full = gradients
    assert 0 < ((half - full).norm() / full.norm()).item() < 0.05
