"""Nothing keeps the policy near its base but a short training."""

from src.regularisers.base import Regulariser


class NoRegulariser(Regulariser):
    """Adds nothing."""
