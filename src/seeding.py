"""Randomness as a function of what it is for, so that a resumed or a distributed run draws the same numbers."""

import numpy as np
import torch


def seed_of(*keys: int) -> int:
    """A well-mixed seed from a tuple of non-negative integers, such as (run seed, iteration, sample)."""
    # the length is mixed in because SeedSequence takes (1,) and (1, 0) for the same
    return int(np.random.SeedSequence((len(keys), *keys)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator_of(*keys: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(*keys))
