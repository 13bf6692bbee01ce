"""Every key that a run may log, with its unit and meaning. `<reward>` stands for a reward's name."""

import functools
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One logged key."""

    unit: str
    meaning: str


GLOSSARY: dict[str, Entry] = {
    "kind": Entry("-", "what the row is: iteration or evaluation"),
    "iteration": Entry("iterations", "rounds of sampling and training done"),
    "reward_queries": Entry("images", "images scored for training; the x-axis of every curve"),
    "optimizer_steps": Entry("steps", "optimizer steps of the policy"),
    "seconds": Entry("s", "training time so far, evaluation and logging excluded"),
    "reward/<reward>/mean": Entry("reward", "raw training reward, mean over the iteration's samples"),
    "reward/<reward>/std": Entry("reward", "raw training reward, population standard deviation"),
    "train/loss": Entry("nats", "loss of a reward model in training, mean over the epoch (aesthetic: squared error)"),
    "val/loss": Entry("nats", "the same on held-out comparisons"),
    "policy/loss": Entry("-", "PPO-clipped surrogate loss, mean over optimizer steps"),
    "policy/ratio_mean": Entry("-", "mean of pi_theta / pi_old; densities per latent dimension (log-mean)"),
    "policy/ratio_std": Entry("-", "standard deviation of pi_theta / pi_old within a microbatch, mean over them"),
    "policy/clip_fraction": Entry("share", "rows whose gradient the clip took away"),
    "policy/grad_norm": Entry("-", "gradient norm of the policy before clipping, mean over optimizer steps"),
    "policy/advantage_std": Entry("sd", "standard deviation of the advantages over samples and timesteps"),
    "critic/loss": Entry("reward^2", "clipped regression loss in normalised reward, mean over optimizer steps"),
    "critic/grad_norm": Entry("-", "gradient norm of the critic before clipping, mean over optimizer steps"),
    "critic/explained_variance": Entry("share", "1 - Var(G - V) / Var(G) on fresh samples, before the update"),
    "critic/value_mean": Entry("sd", "mean value, in normalised reward, before the update"),
    "neurons/dormant_0": Entry("share", "hidden critic neurons with score <= 0 (Sokar et al. 2023, eq. 1)"),
    "neurons/dormant_0.025": Entry("share", "hidden critic neurons with score <= 0.025"),
    "neurons/dormant_0.1": Entry("share", "hidden critic neurons with score <= 0.1"),
    "reset/share": Entry("share", "hidden critic neurons reset after this iteration"),
    "eval/<reward>/mean": Entry("reward", "raw reward on the evaluation prompts and seeds"),
    "eval/<reward>/std": Entry("reward", "its population standard deviation over pictures"),
    "eval/<reward>/base_sd": Entry("reward", "standard deviation of the base's samples within a prompt, pooled"),
    "eval/<reward>/gain": Entry("base sd", "gain over the base picture of the same prompt and seed"),
    "eval/<reward>/gain_low": Entry("base sd", "lower end of its 95% interval (bootstrap over prompts)"),
    "eval/<reward>/gain_high": Entry("base sd", "upper end of its 95% interval"),
    "eval/<reward>/win_rate": Entry("share", "pictures scored above the base's of the same prompt and seed; ties half"),
}


@functools.cache
def lookup(key: str) -> Entry:
    """The entry of a logged key. Raises KeyError on one that is not in the glossary."""
    for pattern, entry in GLOSSARY.items():
        if re.fullmatch(re.escape(pattern).replace("<reward>", "[a-z0-9_]+"), key):
            return entry
    raise KeyError(f"{key} is logged but not in src/metrics/glossary.py")
