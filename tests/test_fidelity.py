"""Ours against the formulas of TDPO and of its authors' code, whose values plain numpy gives (golden/make_fidelity.py).

docs/fidelity.md names the test of each row.
"""

import functools
import json

import pytest
import torch
from diffusers import DDIMScheduler

from src.algorithms.base import clipped_surrogate, clipped_value_loss
from src.config import check
from src.critic.base import Head
from src.errors import UserError
from src.normalise import PromptNormaliser, standardise
from src.policy import ddim
from src.policy.gaussian import gaussian_log_prob
from src.policy.schedule import ddim_schedule
from src.resets.active import ActiveReset
from src.resets.ops import magnitudes, neuron_scores, probe_states, reinit_all
from tests.conftest import ROOT, composed
from tests.golden import make_fidelity as formula

GOLDEN = json.loads((ROOT / "tests/golden/fidelity.json").read_text())
RNG = functools.partial(torch.Generator().manual_seed, 0)


def test_the_golden_values_are_what_the_formulas_give():
    assert GOLDEN["ddim"]["1"] == pytest.approx(formula.ddim_log_prob(1))
    assert GOLDEN["losses"] == pytest.approx(formula.losses())


def tensor(values) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.float32)


def stable_diffusion_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", set_alpha_to_one=False, steps_offset=1
    )


def test_timesteps():
    assert (
        ddim_schedule(stable_diffusion_scheduler(), formula.STEPS, "policy.path=x").timesteps.tolist()
        == GOLDEN["timesteps"]
    )


@pytest.mark.parametrize("t", formula.AT)
def test_log_probability_of_a_ddim_step(t):
    golden, n = GOLDEN["ddim"][str(t)], 4 * 8 * 8
    x, noise = (tensor(formula.wave(n, *args)).view(1, *formula.SHAPE) for args in ((0.37,), (0.53, 1.0)))
    at, after = ddim_schedule(stable_diffusion_scheduler(), formula.STEPS, "policy.path=x").alpha_bars(
        torch.tensor([t])
    )
    mean, std = ddim.ddim_step(noise, x, at, after, 1.0, "epsilon")
    assert std.item() == pytest.approx(golden["std"], rel=1e-4)
    assert mean.flatten()[0].item() == pytest.approx(golden["mean_first"], rel=1e-4)
    drawn = mean + std * 0.9 * tensor(formula.wave(n, 0.71, 2.0)).view(1, *formula.SHAPE)
    assert gaussian_log_prob(drawn, mean, std).item() == pytest.approx(golden["log_prob"], rel=1e-4)


def test_per_prompt_moments():
    normaliser = PromptNormaliser(buffer=32, min_count=16)
    prompts = [formula.PROMPTS[i % 3] for i in range(18)]
    for k, golden in enumerate(GOLDEN["moments"]):
        got = normaliser(tensor(5 + 2 * formula.wave(18, 0.9, k)), prompts)
        torch.testing.assert_close(got, tensor(golden), rtol=1e-5, atol=1e-5)


def test_temporal_rewards():
    returns = tensor(formula.wave(4, 1.3))[:, None].expand(-1, 3)
    got = standardise(returns - 0.5 * tensor(formula.wave(12, 0.8)).view(4, 3), (0, 1))
    torch.testing.assert_close(got, tensor(GOLDEN["temporal_rewards"]), rtol=1e-5, atol=1e-5)


def test_losses():
    log_ratio, advantage = tensor(3e-4 * formula.wave(6, 1.1)), tensor(formula.wave(6, 2.3))
    policy = clipped_surrogate(log_ratio, advantage, 1e-4).value
    assert policy.item() == pytest.approx(GOLDEN["losses"]["policy"], rel=1e-5)
    value, old, target = (tensor(formula.wave(6, *args)) for args in ((0.7,), (0.7, 0.4), (1.9,)))
    assert clipped_value_loss(value, old, target, 0.2).item() == pytest.approx(GOLDEN["losses"]["critic"], rel=1e-5)


def closed_form_head() -> Head:
    """Linear, 3-4-2-1, its hidden layers' weights waves."""
    head = Head(3, [4, 2], activation="none", initial="authors", initial_width=768)
    with torch.no_grad():
        for k, (a, b) in enumerate(((3, 4), (4, 2))):
            head.layers[k].weight.copy_(tensor(formula.weights(a, b, k)))
    return head


def test_dormancy_of_a_linear_head_goes_by_a_relu():
    states = tensor(formula.wave(15, 0.5)).abs().view(5, 3)
    scores = neuron_scores(magnitudes(closed_form_head().hidden(states)))
    for layer, golden, dormant in zip(scores, *GOLDEN["dormancy"].values(), strict=True):
        torch.testing.assert_close(layer, tensor(golden), rtol=1e-4, atol=1e-5)
        assert (layer <= 0).tolist() == dormant


def test_an_active_reset_redraws_what_the_authors_redraw():
    """What goes into and out of every neuron that is not dormant, and its bias; of Adam the moments, not the step."""
    head = closed_form_head()
    for layer in head.layers:
        layer.bias.data.fill_(0.3)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.0)
    head(torch.randn(5, 3, generator=RNG())).square().mean().backward()
    optimizer.step()
    before = [layer.weight.clone() for layer in head.layers]
    scores = [tensor(layer) for layer in GOLDEN["dormancy"]["scores"]]
    ActiveReset(threshold=0.0, ratio=1.0, outgoing="redraw").apply(head, scores, optimizer, RNG())
    active = [torch.tensor(layer).logical_not() for layer in GOLDEN["dormancy"]["dormant"]]
    touched = [
        active[0][:, None].expand(4, 3),
        active[1][:, None] | active[0][None],
        active[1][None],
    ]
    for layer, old, mask in zip(head.layers, before, touched, strict=True):
        assert torch.equal(layer.weight != old, mask)
        state = optimizer.state[layer.weight]
        assert state["step"] == 1 and not state["exp_avg"][mask].any() and not state["exp_avg_sq"][mask].any()
        assert state["exp_avg_sq"][~mask].all()
    assert [layer.bias.tolist() for layer in head.layers] == [
        pytest.approx([0, 0, 0.3, 0]),
        pytest.approx([0, 0.3]),
        pytest.approx([0.3]),  # of the output: kept
    ]


@pytest.mark.parametrize("d", [768, 1024])
def test_the_authors_standard_deviation_in_every_layer(d):
    """1/(d + 1) to 1%, of first weights and of 10^5 redrawn ones of each layer."""
    wanted = pytest.approx(GOLDEN["initial_std"][str(d)], rel=0.01)
    torch.manual_seed(0)
    head, rng = Head(d, [1024, 128, 64, 16], activation="none", initial="authors"), RNG()
    assert [head.layers[k].weight.std().item() for k in (0, 1)] == [wanted, wanted]  # 10^5 weights and more
    for layer in head.layers:
        drawn = []
        for _ in range(-(-(10**5) // layer.weight.numel())):
            head.draw(layer.weight.data, rng)
            drawn.append(layer.weight.data.flatten().clone())
        assert torch.cat(drawn).std().item() == wanted


def test_the_preset_has_the_authors_head_and_resets_redraw_it():
    cfg = check(composed("+experiment=tdpo_r_aesthetic", "suite=sd14", "+preset=official"))
    options = {key: cfg["critic"][key] for key in ("hidden", "dropout", "activation", "initial", "initial_width")}
    torch.manual_seed(0)
    head = Head(768, **options)
    optimizer = torch.optim.Adam(head.parameters())
    reset = {k: v for k, v in cfg["reset"].items() if k != "_target_"}
    for redraw in (
        lambda: None,
        lambda: ActiveReset(**reset).apply(head, [torch.ones(w) for w in options["hidden"]], optimizer, RNG()),
        lambda: reinit_all(head, optimizer, RNG()),
    ):
        redraw()
        every = torch.cat([layer.weight.flatten() for layer in head.layers])
        assert every.std().item() == pytest.approx(1 / 769, rel=0.01) and len(every) > 9 * 10**5
    unit = torch.nn.functional.normalize(torch.randn(64, 768, generator=RNG()), dim=-1)
    assert head.eval()(unit).std().item() < 1e-9  # V is a constant


def test_fan_in_weights_keep_the_size_of_what_passes():
    torch.manual_seed(0)
    head = Head(768, [1024, 128, 64, 16], activation="none")
    x = torch.randn(256, 768, generator=RNG())
    assert 0.2 < head(x).std().item() < 5
    assert head.layers[1].weight.std().item() == pytest.approx(1025**-0.5, rel=0.01)


def test_the_authors_probe_is_of_scattered_states():
    samples, slots = probe_states(256, 50, 64, True, RNG())
    assert len(samples) == 64 and len(set(slots.tolist())) > 20


def test_width_of_nothing_is_refused():
    with pytest.raises(UserError, match=r"critic.initial_width=0 must be at least 1"):
        Head(4, [2], initial="authors", initial_width=0)
