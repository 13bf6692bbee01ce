"""Every strategy by every criterion and selection, on a critic worked out by hand, under one rank and two.

One input; two hidden layers of two neurons: h0 = (relu(x), relu(-x)), h1 = (h00 + h01, 2 h00 + h01), V = h10 - 3 h11.
On the states x = 1, 2, -1, 3 with target 0:

- activations: layer 0 sums to 6 and 1, layer 1 to 7 and 13: scores (12/7, 2/7) and (0.7, 1.3);
- errors -5, -10, -2, -15; gradients: layer 1 sums to 32 and 96, layer 0 to 5 * 30 and 2 * 2: (1.95, 0.05), (0.5, 1.5).
"""

import pickle
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing

from src.critic.base import Head
from src.ranks import Ranks
from src.resets.active import ActiveReset
from src.resets.base import Reset
from src.resets.dormant import DormantReset
from src.resets.full import FullReset
from src.resets.none import NoReset
from src.resets.ops import magnitudes, neuron_scores
from src.resets.random import RandomReset

STATES = torch.tensor([[1.0], [2.0], [-1.0], [3.0]])
BY_THRESHOLD, BY_RATIO, BY_BOTH = (
    {"threshold": 0.5},
    {"threshold": None, "ratio": 0.5},
    {"threshold": 0.5, "ratio": 0.6},
)
# (strategy, criterion, selection): neurons of each layer
EXPECTED = {
    (DormantReset, "activation", "threshold"): [[0, 1], [0, 0]],
    (DormantReset, "activation", "ratio"): [[0, 1], [1, 0]],
    (DormantReset, "activation", "both"): [[0, 1], [0, 0]],
    (DormantReset, "gradient", "threshold"): [[0, 1], [1, 0]],  # a score of 0.5 is not above 0.5
    (DormantReset, "gradient", "ratio"): [[0, 1], [1, 0]],
    (DormantReset, "gradient", "both"): [[0, 1], [1, 0]],
    (ActiveReset, "activation", "threshold"): [[1, 0], [1, 1]],
    (ActiveReset, "activation", "ratio"): [[1, 0], [0, 1]],
    (ActiveReset, "activation", "both"): [[1, 0], [0, 1]],  # 0.6 of two active ones is one, the most active
    (ActiveReset, "gradient", "threshold"): [[1, 0], [0, 1]],
    (ActiveReset, "gradient", "ratio"): [[1, 0], [0, 1]],
    (ActiveReset, "gradient", "both"): [[1, 0], [0, 1]],
    **{(NoReset, score, way): [[0, 0], [0, 0]] for score in ("activation", "gradient") for way in ("ratio", "both")},
}
# random takes as many as active would, whichever they are
COUNTS = {
    (RandomReset, score, way): [sum(layer) for layer in EXPECTED[ActiveReset, score, way]]
    for score in ("activation", "gradient")
    for way in ("threshold", "ratio", "both")
}
FULL = (FullReset, "activation", "ratio")  # takes everything, whatever the scores
CASES = [*EXPECTED, *COUNTS]
OURS, REDRAWN = {"outgoing": "zero", "step_counter": "keep"}, {"outgoing": "redraw", "step_counter": "clear"}
ALL = [(case, options) for case in [*CASES, FULL] for options in (OURS, REDRAWN)]
Case = tuple[type[Reset], str, str]


def strategy_of(case: Case, options: dict[str, str]) -> Reset:
    kind, score, way = case
    if kind is FullReset:
        return FullReset(score=score, **options)
    return kind(score=score, **options, **{"threshold": BY_THRESHOLD, "ratio": BY_RATIO, "both": BY_BOTH}[way])


def hand_set_critic() -> tuple[Head, torch.optim.Optimizer]:
    """The head above, with Adam moments of 1 after 7 steps."""
    head = Head(1, [2, 2])
    with torch.no_grad():
        for layer, weight in zip(head.layers, ([[1], [-1]], [[1, 1], [2, 1]], [[1, -3]]), strict=True):
            layer.weight.copy_(torch.tensor(weight))
            layer.bias.zero_()
    optimizer = torch.optim.AdamW(head.parameters())
    for p in head.parameters():
        ones = torch.ones_like(p)
        optimizer.state[p] = {"exp_avg": ones, "exp_avg_sq": ones.clone(), "step": torch.tensor(7.0)}
    return head, optimizer


def reset_with(case: Case, ranks: Ranks, options: dict[str, str]) -> dict[str, list]:
    """Masks, parameters and moments after a reset; this rank sees its part of the states only."""
    head, optimizer = hand_set_critic()
    own = STATES[ranks.part(len(STATES))]
    strategy = strategy_of(case, options)
    seen = {"activation": head.hidden(own), "gradient": head.gradients(own, torch.zeros(len(own)))}
    sums = magnitudes(seen[strategy.score])
    ranks.add_up(sums)
    masks = strategy.apply(head, neuron_scores(sums), optimizer, torch.Generator().manual_seed(1))
    return {
        "masks": [mask.int().tolist() for mask in masks],
        "values": [p.tolist() for p in head.parameters()],
        **{
            key: [optimizer.state[p][key].tolist() for p in head.parameters() if optimizer.state.get(p)]
            for key in ("exp_avg", "exp_avg_sq", "step")
        },
    }


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = [reset_with(case, Ranks(rank, 2), options) for case, options in ALL]
    (Path(folder) / f"rank{rank}").write_bytes(pickle.dumps(found))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_two_ranks(tmp_path_factory) -> list[list[dict]]:
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.spawn(_rank, (str(folder),), nprocs=2)
    return [pickle.loads((folder / f"rank{rank}").read_bytes()) for rank in range(2)]


def becomes(case: Case, masks: list[list[int]], outgoing: str) -> list[torch.Tensor]:
    """What weights are to be: rows of reset neurons ~ N(0, 1 / (inputs + 1)), drawn layer by layer from one seed."""
    rng = torch.Generator().manual_seed(1)
    if case[0] is RandomReset:
        for _ in masks:
            torch.randperm(2, generator=rng)  # its lots
    matrices = []
    for old, own, before in zip(hand_set_critic()[0].layers, [*masks, [0]], [[0], *masks], strict=True):
        drawn = torch.randn(old.weight.shape, generator=rng) / (old.weight.shape[1] + 1) ** 0.5
        new = old.weight.detach().clone()
        for j, i in product(range(len(own)), range(len(before))):
            if own[j] or before[i]:
                new[j, i] = drawn[j, i] if own[j] or outgoing == "redraw" else 0
        matrices.append(new)
    return matrices


@pytest.mark.parametrize("options", [OURS, REDRAWN], ids=["zero-keep", "redraw-clear"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join((case[0].__name__, *case[1:])))
def test_who_is_reset_and_what_becomes_of_them(case, options):
    found = reset_with(case, Ranks(), options)
    masks = found["masks"]
    if case in EXPECTED:
        assert masks == EXPECTED[case]
    else:
        assert [sum(mask) for mask in masks] == COUNTS[case]
    w0, b0, w1, b1, w2, _ = found["values"]
    for found_weights, expected in zip((w0, w1, w2), becomes(case, masks, options["outgoing"]), strict=True):
        torch.testing.assert_close(torch.tensor(found_weights), expected, rtol=1e-6, atol=0)
    first, second = masks
    moments = found["exp_avg"]
    for i in range(2):  # gone for what goes into a reset neuron or comes out of it
        assert moments[0][i] == [1.0 - first[i]] and moments[1][i] == 1 - first[i]
        assert moments[4][0][i] == 1 - second[i] and moments[3][i] == 1 - second[i]
        assert [moments[2][k][i] for k in range(2)] == [0 if first[i] or second[k] else 1 for k in range(2)]
    assert b0 == [0, 0] and b1 == [0, 0] and found["exp_avg"] == found["exp_avg_sq"]
    touched = [any(first), any(first), any(first + second), any(second), any(second), False]
    cleared = options["step_counter"] == "clear"
    assert found["step"] == [0 if cleared and some else 7 for some in touched]


def test_a_full_reset_starts_over():
    found = reset_with(FULL, Ranks(), OURS)
    assert found["masks"] == [[1, 1], [1, 1]] and found["exp_avg"] == [] and found["step"] == []
    for old, new in zip(hand_set_critic()[0].parameters(), found["values"], strict=True):
        new = torch.tensor(new)
        assert new.eq(0).all() if old.dim() == 1 else new.ne(old).all()  # biases, weights


def test_two_ranks_reset_what_one_does(of_two_ranks):
    alone = [reset_with(case, Ranks(), options) for case, options in ALL]
    assert of_two_ranks[0] == alone and of_two_ranks[1] == alone
