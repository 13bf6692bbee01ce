"""Randomness as a function of what it is for, so that a resumed or a distributed run draws the same numbers."""

import numpy as np
import torch

# Last keys of what is drawn beside a run's samples, whose own is a small number: here all can be seen to differ.
RESET_STREAM = 1 << 20
EVALUATION_STREAM = 1 << 21  # one more for each prompt set
PROMPT_STREAM = 1 << 22
CRITIC_STREAM = 1 << 23
POOL_STREAM = 1 << 24  # of controls: best-of-n's samples, and candidates and particles beyond the first
PROBE_STREAM = 1 << 25
DROPOUT_STREAM = 1 << 26  # a rank's
LOSS_STREAM = 1 << 27  # what a loss draws for all rows of an optimizer step
FORWARD_STREAM = 1 << 28  # noise of the forward process, of a sample at a slot
RESAMPLING_STREAM = 1 << 29  # which particles go on, of a picture at a step
WINDOW_STREAM = 1 << 30  # which steps draw noise


def seed_of(*keys: int) -> int:
    """A well-mixed seed from a tuple of non-negative integers, such as (run seed, iteration, sample)."""
    # the length is mixed in because SeedSequence takes (1,) and (1, 0) for the same
    return int(np.random.SeedSequence((len(keys), *keys)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator_of(*keys: int) -> torch.Generator:
    """A generator that is a function of what it is for, on the CPU: the same on every device."""
    return torch.Generator().manual_seed(seed_of(*keys))
