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


def test_weights_that_are_held_for_a_while_get_the_layout_too():
    policy = make_policy(finetune="full")
    held = [parameter.detach().clone() for parameter in policy.trainable()]
    assert not policy.unet.conv_in.weight.is_contiguous() and not all(value.is_contiguous() for value in held)
    with torch.autocast("cpu", torch.bfloat16), policy.holding(held):
        first = policy.sample(PROMPTS, SEEDS).latents
        assert policy.unet.conv_in.weight.is_contiguous()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(policy.sample(PROMPTS, SEEDS).latents, first)
        assert policy.unet.conv_in.weight.is_contiguous()


def test_in_float32_weights_stay_as_they_are():
    """Adapters are contiguous, as files of weights have to be."""
    policy = make_policy(lora_targets=["conv2"])
    before = [parameter.stride() for parameter in policy.unet.parameters()]
    laid_out(policy.unet, torch.device("cpu"))
    assert [parameter.stride() for parameter in policy.unet.parameters()] == before
    assert all(parameter.is_contiguous() for parameter in policy.trainable())


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
