import itertools
import math

import pytest
import torch

from src.metrics.best_of_n import best_of_n, best_of_n_kl


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_equals_brute_force_on_a_small_pool(n):
    rng = torch.Generator().manual_seed(0)
    proxy, gold = torch.randn(6, generator=rng), torch.randn(6, generator=rng)
    picked = [gold[max(chosen, key=lambda i: proxy[i])] for chosen in itertools.combinations(range(6), n)]
    assert best_of_n(proxy, gold, n) == pytest.approx(torch.stack(picked).double().mean().item(), rel=1e-6)


def test_of_itself_it_rises_to_the_maximum():
    proxy = torch.tensor([3.0, 1.0, 2.0])
    assert [best_of_n(proxy, proxy, n) for n in (1, 2, 3)] == pytest.approx([2.0, 8 / 3, 3.0])


def test_more_than_the_pool_is_refused():
    with pytest.raises(ValueError, match="best of 4 cannot be estimated from 3"):
        best_of_n(torch.zeros(3), torch.zeros(3), 4)


def test_kl_by_hand():
    assert best_of_n_kl(1) == 0
    assert best_of_n_kl(4) == pytest.approx(math.log(4) - 0.75)
