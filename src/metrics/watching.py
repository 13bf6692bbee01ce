"""The rules of the overoptimization watch: what it follows, when it raises the alarm, and which weights it keeps.

None of them looks at a judge: they are made of what a practitioner has.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal

Signal = Literal["trained", "others", "all", "carry_over", "agreement", "diversity", "nearness", "plainness"]
Keep = Literal["peak", "last"]
FELL = "every reward fell below the base"


def signal_of(row: Mapping[str, Any], trained: str | None, rewards: list[str], signal: Signal) -> float | None:
    """The followed figure of an evaluation, the higher the better; None where the evaluation lacks what it needs.

    Without a name of the trained reward, which nobody may know of weights of others, the rewards are all `others`.

    - trained, others, all: mean gain of those rewards on prompts that no run trains on, base sd. A policy that learns
      what the reward stands for carries it over to new prompts; one that learns to please the network on its own
      prompts does not, and spoils the others.
    - carry_over: gain of the trained reward on such prompts minus its gain on the training prompts, base sd.
    - agreement: mean gain of the other rewards on the training prompts minus that of the trained one, base sd.
    - diversity: log of the Vendi score within prompts. nearness: minus sqrt(KL) from the base. plainness: minus the
      mean saturation.
    """
    if trained is None and needs_trained(signal):
        return None
    others = [name for name in rewards if name != trained]
    gains = {
        "trained": ([f"held_out/{trained}/gain"], []),
        "others": ([f"held_out/{name}/gain" for name in others], []),
        "all": ([f"held_out/{name}/gain" for name in rewards], []),
        "carry_over": ([f"held_out/{trained}/gain"], [f"eval/{trained}/gain"]),
        "agreement": ([f"eval/{name}/gain" for name in others], [f"eval/{trained}/gain"]),
        "diversity": (["pictures/vendi"], []),
        "nearness": ([], ["kl/sqrt"]),
        "plainness": ([], ["pictures/saturation"]),
    }
    plus, minus = gains[signal]
    if not plus + minus or any(row.get(key) is None for key in plus + minus) or (signal == "agreement" and not plus):
        return None
    value = _mean([row[key] for key in plus]) - _mean([row[key] for key in minus])
    return math.log(value) if signal == "diversity" else value


def _mean(values: list[float | int]) -> float:
    return float(sum(values) / len(values)) if values else 0.0


def needs_others(signal: Signal) -> bool:
    """Whether a suite of one reward cannot have this signal."""
    return signal in ("others", "agreement")


def needs_trained(signal: Signal) -> bool:
    """Whether it asks which reward was trained on."""
    return signal in ("trained", "carry_over", "agreement")


def every_reward_fell(row: Mapping[str, Any], rewards: Iterable[str]) -> bool:
    """Joint collapse: whether each of these rewards has fallen below the base's, its whole 95% interval.

    Rewards that have no gain say nothing; without any that has one there is no collapse.
    """
    highest = [row[key] for name in rewards if (key := f"eval/{name}/gain_high") in row]
    return bool(highest) and all(high < 0 for high in highest)


def is_unsound(row: Mapping[str, Any], trained: str | None, rewards: Iterable[str]) -> bool:
    """Whether weights are not to be kept: of a joint collapse, or if the reward they were trained on fell, likewise."""
    return every_reward_fell(row, rewards) or (trained is not None and every_reward_fell(row, [trained]))


def alarm_index(signals: list[float], margin: float, patience: int) -> int | None:
    """The first evaluation at which the signal has been more than `margin` below its peak `patience` times in a row."""
    peak, below = float("-inf"), 0
    for k, value in enumerate(signals):
        peak = max(peak, value)
        below = below + 1 if peak - value > margin else 0
        if below >= patience:
            return k
    return None


def kept_index(
    signals: list[float], margin: float, patience: int, keep: Keep, unsound: Collection[int] = ()
) -> int | None:
    """The evaluation whose weights are kept: before the alarm, the signal's peak, or the last one within the margin.

    Never one of the `unsound`; the base itself is none.

    A signal that falls from the start, such as nearness, has its peak at the base: keep the last.
    """
    seen = signals[: alarm_index(signals, margin, patience)]
    sound = [k for k in range(len(seen)) if k not in unsound]
    if not sound:
        return None
    if keep == "peak":
        return max(sound, key=lambda k: seen[k])
    within = [k for k in sound if max(seen[: k + 1]) - seen[k] <= margin]
    return within[-1] if within else sound[0]
