import pytest
import torch

from src.critic.base import Head
from src.errors import UserError
from src.ranks import Ranks
from src.regularisers.kl_loss import KLLoss
from src.resets.active import ActiveReset
from src.resets.dormant import DormantReset
from src.resets.full import FullReset
from src.resets.lora import LoraNeurons
from src.resets.none import NoReset
from src.resets.ops import Reinit, even_states, magnitudes, neuron_scores, overlap, probe_states, top_share
from src.resets.phase import ResetPhase
from src.resets.random import RandomReset
from tests.test_finetuner import new_critic
from tests.test_policy import make_policy, perturb

SCORES = [torch.tensor([0.0, 0.5, 2.5, 1.0]), torch.tensor([0.0, 2.0, 1.0])]
RNG = lambda: torch.Generator().manual_seed(3)  # noqa: E731


def trained_head() -> tuple[Head, torch.optim.Optimizer]:
    """A 5-4-3-1 head with Adam moments everywhere."""
    torch.manual_seed(0)
    head = Head(5, [4, 3])
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)
    for _ in range(3):
        head(torch.randn(16, 5)).square().mean().backward()
        for p in head.parameters():
            p.grad += torch.randn_like(p) * 0.1
        optimizer.step()
        optimizer.zero_grad()
    return head, optimizer


def snapshot(head: Head, optimizer: torch.optim.Optimizer) -> list[dict[str, torch.Tensor]]:
    keys = ("exp_avg", "exp_avg_sq", "step")
    return [
        {"value": p.detach().clone()} | {k: torch.as_tensor(optimizer.state[p][k]).clone() for k in keys}
        for p in head.parameters()
    ]


def test_scores_by_hand():
    hidden = [torch.tensor([[1.0, 0.0, 3.0], [3.0, 0.0, 5.0]]), torch.zeros(2, 2)]
    scores = neuron_scores(magnitudes(hidden))  # means 2, 0, 4; their mean 2
    assert scores[0].tolist() == [1.0, 0.0, 2.0]
    assert scores[1].tolist() == [0.0, 0.0]


def test_scores_use_magnitudes():
    hidden = [torch.tensor([[-1.0, 1.0], [1.0, -3.0]])]
    assert neuron_scores(magnitudes(hidden))[0].tolist() == pytest.approx([2 / 3, 4 / 3])


def hand_set_head() -> Head:
    """One input, hidden layers of two neurons each; the second of the first layer is silent for positive inputs."""
    head = Head(1, [2, 2])
    weights = ([[1.0], [-1.0]], [[1.0, 1.0], [2.0, 1.0]], [[1.0, -3.0]])
    with torch.no_grad():
        for layer, weight in zip(head.layers, weights, strict=True):
            layer.weight.copy_(torch.tensor(weight))
    return head


def test_gradient_scores_by_hand():
    x, target = torch.tensor([[1.0], [2.0]]), torch.tensor([0.0, 0.0])
    # h0 = (x, 0), h1 = (x, 2x), V = x - 6x = -5x: errors -5 and -10
    # dL/dz1 = error * (1, -3) = (-5, 15), (-10, 30); dL/dz0 = (error * (1 - 6), 0) = (25, 0), (50, 0)
    layers = hand_set_head().gradients(x, target)
    assert [layer.tolist() for layer in layers] == [[[25.0, 0.0], [50.0, 0.0]], [[-5.0, 15.0], [-10.0, 30.0]]]
    scores = neuron_scores(magnitudes(layers))
    assert scores[0].tolist() == [2.0, 0.0] and scores[1].tolist() == [0.5, 1.5]


def test_gradients_leave_none_on_the_parameters():
    head = hand_set_head()
    head.gradients(torch.ones(3, 1), torch.zeros(3))
    assert all(p.grad is None for p in head.parameters())


def test_the_probe_takes_all_timesteps_of_spread_samples_or_states_at_random():
    samples, slots = probe_states(9, 3, states=6, scattered=False, rng=torch.Generator())
    assert samples.tolist() == [0, 0, 0, 8, 8, 8] and slots.tolist() == [0, 1, 2, 0, 1, 2]
    assert len(probe_states(9, 3, states=1, scattered=False, rng=torch.Generator())[0]) == 3  # one sample at least
    samples, slots = probe_states(9, 3, states=8, scattered=True, rng=torch.Generator().manual_seed(0))
    assert len(set(zip(samples.tolist(), slots.tolist(), strict=True))) == 8
    assert samples.max() < 9 and slots.max() < 3 and len(samples.unique()) > 3


def test_overlap_by_hand():
    first = [torch.tensor([True, True, False]), torch.tensor([False])]
    second = [torch.tensor([False, True, True]), torch.tensor([True])]
    assert overlap(first, second) == 0.25  # one of four
    assert overlap(first, first) == 1
    nobody = [torch.zeros(2, dtype=torch.bool)]
    assert overlap(nobody, nobody) == 0


def test_a_trigger_decides_at_the_iterations_that_every_names():
    dormant = {"neurons/dormant_0.1": 0.4}
    above = ActiveReset(every=5, trigger="neurons/dormant_0.1", level=0.3)
    below = ActiveReset(every=5, trigger="neurons/dormant_0.1", level=0.3, side="below")
    assert [k for k in range(1, 11) if above.due(k, dormant)] == [5, 10]
    assert not any(below.due(k, dormant) for k in range(1, 11))
    assert below.due(5, {"neurons/dormant_0.1": 0.2})
    assert not above.due(5, {"neurons/dormant_0.1": 0.3})  # at the level is not above it


def test_a_trigger_that_is_no_metric_is_refused():
    with pytest.raises(UserError, match="neurons/dorment is no metric of an iteration"):
        ActiveReset(trigger="neurons/dorment")
    with pytest.raises(UserError, match="not logged by this run"):
        ActiveReset(every=10, trigger="critic/loss").due(1, {"policy/loss": 0.0})  # at once, not at the tenth


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (NoReset(), [[0, 0, 0, 0], [0, 0, 0]]),
        (DormantReset(threshold=0.0), [[1, 0, 0, 0], [1, 0, 0]]),
        (DormantReset(threshold=0.5), [[1, 1, 0, 0], [1, 0, 0]]),
        (DormantReset(threshold=None, ratio=0.5), [[1, 1, 0, 0], [1, 0, 1]]),
        (ActiveReset(threshold=0.0), [[0, 1, 1, 1], [0, 1, 1]]),
        (ActiveReset(threshold=0.0, ratio=1 / 3), [[0, 0, 1, 0], [0, 1, 0]]),
        (ActiveReset(threshold=None, ratio=0.5), [[0, 0, 1, 1], [0, 1, 1]]),
        (ActiveReset(threshold=None, ratio=0.0), [[0, 0, 0, 0], [0, 0, 0]]),
        (RandomReset(threshold=None), [[1, 1, 1, 1], [1, 1, 1]]),
    ],
)
def test_who_is_selected(strategy, expected):
    assert [strategy.select(scores, RNG()).int().tolist() for scores in SCORES] == expected


def test_random_draws_differ_between_resets_and_are_as_many_as_active():
    scores, rng = torch.rand(64) * (torch.arange(64) >= 24), RNG()  # 24 are dormant
    strategy, active = RandomReset(ratio=0.25), ActiveReset(ratio=0.25)
    first, second = strategy.select(scores, rng), strategy.select(scores, rng)
    assert first.sum() == second.sum() == active.select(scores, rng).sum() == 10
    assert not torch.equal(first, second)
    assert strategy.select(scores, RNG())[:24].any()  # dormant ones are drawn too


def test_top_share_rounds_to_the_nearest_neuron():
    scores, everyone = torch.arange(10.0), torch.ones(10, dtype=torch.bool)
    assert [int(top_share(scores, everyone, ratio).sum()) for ratio in (0.04, 0.06, 0.5, 0.96)] == [0, 1, 5, 10]


@pytest.mark.parametrize("outgoing", ["zero", "redraw"])
@pytest.mark.parametrize("counter", ["keep", "clear"])
def test_masked_neurons_change_and_nothing_else(outgoing, counter):
    head, optimizer = trained_head()
    strategy = ActiveReset(threshold=1.5, outgoing=outgoing, step_counter=counter)  # neuron 2 of layer 0, 1 of layer 1
    before = snapshot(head, optimizer)
    strategy.apply(head, SCORES, optimizer, RNG())
    after = snapshot(head, optimizer)
    touched = [torch.zeros_like(p["value"], dtype=torch.bool) for p in before]
    touched[0][2] = True  # incoming of (0, 2)
    touched[1][2] = True  # its bias
    touched[2][:, 2] = True  # its outgoing
    touched[2][1] = True  # incoming of (1, 1)
    touched[3][1] = True
    touched[4][:, 1] = True
    for mask, old, new in zip(touched, before, after, strict=True):
        assert torch.equal(old["value"][~mask], new["value"][~mask])
        assert (old["value"][mask] != new["value"][mask]).all()
        for moment in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(old[moment][~mask], new[moment][~mask])
            assert new[moment][mask].eq(0).all()
        expected = old["step"] if counter == "keep" or not mask.any() else torch.zeros_like(old["step"])
        assert torch.equal(new["step"], expected)
    assert after[1]["value"][2] == 0 and after[3]["value"][1] == 0
    kept = after[2]["value"][[0, 2], 2]  # from the masked (0, 2) to kept neurons of layer 1
    assert kept.eq(0).all() if outgoing == "zero" else kept.ne(0).all()
    assert after[2]["value"][1].ne(0).all()  # incoming of the masked (1, 1) is redrawn, from (0, 2) too


def test_zero_outgoing_keeps_the_function_of_the_kept_neurons():
    head, optimizer = trained_head()
    x = torch.randn(32, 5)
    silenced = head.hidden(x)
    silenced[0][:, 2] = 0
    rest = torch.relu(head.layers[1](silenced[0]))
    expected = head.layers[2](rest).squeeze(-1)
    ActiveReset(threshold=2.0).apply(head, [SCORES[0], torch.zeros(3)], optimizer, RNG())
    torch.testing.assert_close(head(x), expected)


def test_none_never_resets_and_full_starts_over():
    head, optimizer = trained_head()
    before = snapshot(head, optimizer)
    assert not any(NoReset(every=1).due(k, {}) for k in range(1, 50))
    assert [k for k in range(1, 31) if FullReset(every=10).due(k, {})] == [10, 20, 30]
    FullReset().apply(head, SCORES, optimizer, RNG())
    for old, p in zip(before, head.parameters(), strict=True):
        assert (old["value"] != p).any()
        assert p not in optimizer.state
    assert all(layer.bias.eq(0).all() for layer in head.layers)
    head(torch.randn(16, 5)).mean().backward()
    optimizer.step()  # and it trains on


def test_redrawn_weights_have_the_initial_spread():
    head = Head(255, [512, 8])
    optimizer = torch.optim.AdamW(head.parameters())
    ActiveReset(threshold=None).apply(head, [torch.ones(512), torch.ones(8)], optimizer, RNG())
    assert head.layers[0].weight.std().item() == pytest.approx(256**-0.5, rel=0.02)


@pytest.mark.parametrize("bad", [{"ratio": 1.5}, {"ratio": -0.1}, {"every": 0}, {"threshold": -1.0}])
def test_bad_options_are_refused(bad):
    with pytest.raises(UserError, match=r"reset\."):
        ActiveReset(**bad)


def test_a_share_of_everything_is_refused():
    with pytest.raises(UserError, match=r"reset=full takes every neuron, not reset.ratio=0.5 of them"):
        FullReset(ratio=0.5)


@pytest.fixture
def adapted() -> tuple[LoraNeurons, torch.optim.Optimizer]:
    """A policy whose adapters have moved, with moments everywhere."""
    policy = make_policy(num_steps=2, lora_rank=4, lora_targets=["conv1", "to_q"])
    perturb(policy)
    optimizer = torch.optim.AdamW(policy.trainable(), lr=1e-3)
    for p in policy.trainable():
        p.grad = torch.ones_like(p)
    optimizer.step()
    return LoraNeurons(policy, microbatch=3), optimizer


def test_lora_ranks_are_measured_by_what_passes_through_them(adapted):
    lora, _ = adapted
    policy, rollout = lora.policy, lora.policy.sample(["cat", "owl"], [1, 2])
    samples, slots = even_states(2, 2, 4)
    assert samples.tolist() == [0, 0, 1, 1] and slots.tolist() == [0, 1, 0, 1]
    seen = lora.magnitudes(rollout, samples, slots)
    assert [len(layer) for layer in seen] == [4] * len(lora.pairs)
    first = lora.pairs[0][0]
    with torch.no_grad():  # the first adapter sees the input of the first block
        inputs = []
        handle = first.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
        text = policy.encode_prompts([rollout.prompts[i] for i in samples])
        policy.predict(rollout.latents[samples, slots], rollout.timesteps[slots], text)
        handle.remove()
        expected = torch.nn.functional.conv2d(inputs[0], first.weight, padding=1).abs().sum((0, 2, 3))
    torch.testing.assert_close(seen[0], expected)


def test_lora_ranks_are_the_same_seen_by_two_processes(adapted):
    lora, _ = adapted
    rollout = lora.policy.sample(["cat", "owl", "dog"], [1, 2, 3])
    samples, slots = even_states(3, 2, 5)
    assert len(samples) == 6 and slots.bincount().tolist() == [3, 3]  # as many of each timestep
    whole, parts = lora.magnitudes(rollout, samples, slots), []
    for ranks in (Ranks(0, 2), Ranks(1, 2)):
        part, own = ranks.part(3), ranks.own(samples, 3)
        theirs = rollout.of(torch.arange(3)[part])
        parts.append(lora.magnitudes(theirs, samples[own] - part.start, slots[own]))
    for all_of_it, first, second in zip(whole, *parts, strict=True):
        torch.testing.assert_close(first + second, all_of_it)


def test_reset_ranks_add_nothing_and_the_others_stay(adapted):
    lora, optimizer = adapted
    before = [(a.weight.clone(), b.weight.clone()) for a, b in lora.pairs]
    mask = torch.tensor([True, False, False, True])
    lora.reinit([mask] * len(lora.pairs), Reinit(), optimizer, RNG())
    for (a, b), (old_a, old_b) in zip(lora.pairs, before, strict=True):
        assert torch.equal(a.weight[~mask], old_a[~mask]) and torch.equal(b.weight[:, ~mask], old_b[:, ~mask])
        assert (a.weight[mask] != old_a[mask]).all() and b.weight[:, mask].eq(0).all()
        for weight, kept in ((a.weight, a.weight[~mask]), (b.weight, b.weight[:, ~mask])):
            assert (optimizer.state[weight]["exp_avg"] != 0).sum() == kept.numel()
    assert torch.cat([a.weight[mask].flatten() for a, _ in lora.pairs]).std().item() == pytest.approx(1 / 4, rel=0.05)


def test_a_full_reset_of_the_policy_is_the_base_again(adapted):
    lora, optimizer = adapted
    masks = [FullReset(where="policy").select(torch.zeros(4), RNG()) for _ in lora.pairs]
    lora.reinit(masks, Reinit(), optimizer, RNG())
    rollout = lora.policy.sample(["cat"], [1])
    assert lora.policy.kl_to_base(rollout).eq(0).all()


def test_what_cannot_be_reset_is_told():
    with pytest.raises(UserError, match="scored by activation"):
        ActiveReset(score="gradient", where="both")
    with pytest.raises(UserError, match="choose policy=lora"):
        LoraNeurons(make_policy(finetune="full"), microbatch=4)
    assert not ActiveReset(where="policy").needs_critic and not NoReset(where="both").needs_lora


def test_what_never_fell_due_is_told():
    policy, critic = make_policy(num_steps=2, lora_rank=4, lora_targets=["conv1", "to_q"]), new_critic()
    phase = lambda strategy: ResetPhase(strategy, critic, policy, 4, 0, 64, False)  # noqa: E731
    assert "reset.every=10, iterations=2; with reset.every=1" in phase(ActiveReset()).unmet(2)
    assert "reset.every=10, iterations=2" in phase(ActiveReset(where="policy")).unmet(2)
    rare = phase(ActiveReset(every=1, trigger="neurons/dormant_0", level=0.9))
    assert "reset.trigger=neurons/dormant_0 was not above reset.level=0.9" in rare.unmet(2)
    nobody = phase(DormantReset(every=1))
    nobody.last_masks = [torch.zeros(64, dtype=torch.bool)]
    assert "the last reset took nobody: by reset.threshold=0.0 and reset.ratio=1.0" in nobody.unmet(2)
    nobody.last_masks[0][3] = True
    assert nobody.unmet(2) is None and phase(NoReset()).unmet(2) is None
    assert "regulariser.move_every=5, iterations=2" in KLLoss(beta=1.0, move_every=5).unmet(2)
    assert KLLoss(beta=1.0, move_every=5).unmet(5) is None and KLLoss(beta=1.0).unmet(5) is None
