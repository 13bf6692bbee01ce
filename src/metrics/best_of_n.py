"""Best-of-n: what selecting by a proxy reward does to it and to the gold reward, and how far it goes from the base."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def best_of_n(proxy: Float[Tensor, " pool"], other: Float[Tensor, " pool"], n: int) -> float:
    """E[`other` of the sample with the highest `proxy` among n drawn from the pool without replacement], exactly.

    The sample of proxy rank i (from below, 1-based) is the best of n with probability C(i-1, n-1) / C(pool, n): the
    unbiased estimator of Nakano et al. 2021 (arXiv 2112.09332, appendix I). Among equal proxies a coin decides. Raises
    ValueError if n exceeds the pool.
    """
    size = len(proxy)
    if not 1 <= n <= size:
        raise ValueError(f"best of {n} cannot be estimated from {size} samples")
    _, equal, count = proxy.unique(return_inverse=True, return_counts=True)
    mean = torch.zeros(len(count), dtype=torch.float64).index_add_(0, equal, other.double()) / count
    ranked = mean[equal][proxy.argsort()]
    total = math.comb(size, n)
    weights = torch.tensor([math.comb(i, n - 1) / total for i in range(size)], dtype=torch.float64)
    return float(weights @ ranked)


def best_of_n_kl(n: int) -> float:
    """KL from the base policy of best-of-n sampling, nats: log n - (n - 1) / n (Stiennon et al. 2020, appendix G.3)."""
    return math.log(n) - (n - 1) / n
