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
    "kind": Entry("-", "what the row is: iteration, evaluation or watch"),
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
    "policy/ratio_std": Entry("-", "standard deviation of pi_theta / pi_old over the rows of the iteration's updates"),
    "policy/clip_fraction": Entry("share", "rows whose gradient the clip took away"),
    "policy/<measure>/step_<k>": Entry("", "each of the three above at the k-th denoising step, from the noisiest on"),
    "policy/grad_norm": Entry("-", "gradient norm of the policy before clipping, mean over optimizer steps"),
    "policy/advantage_std": Entry("sd", "standard deviation of the advantages over samples and timesteps"),
    "critic/loss": Entry("reward^2", "clipped regression loss in normalised reward, mean over optimizer steps"),
    "critic/grad_norm": Entry("-", "gradient norm of the critic before clipping, mean over optimizer steps"),
    "critic/explained_variance": Entry("share", "1 - Var(G - V) / Var(G) on fresh samples, before the update"),
    "critic/explained_variance/step_<k>": Entry("share", "the same at the k-th denoising step"),
    "critic/value_mean": Entry("sd", "mean value, in normalised reward, before the update"),
    "neurons/dormant_0": Entry("share", "hidden critic neurons with score <= 0 (Sokar et al. 2023, eq. 1)"),
    "neurons/dormant_0.025": Entry("share", "hidden critic neurons with score <= 0.025"),
    "neurons/dormant_0.1": Entry("share", "hidden critic neurons with score <= 0.1"),
    "neurons/gradient_dormant_0": Entry("share", "the same by gradient (GraMa, Liu et al. 2025): score <= 0"),
    "neurons/gradient_dormant_0.025": Entry("share", "by gradient, score <= 0.025"),
    "neurons/gradient_dormant_0.1": Entry("share", "by gradient, score <= 0.1"),
    "reset/share": Entry("share", "hidden critic neurons reset after this iteration"),
    "reset/lora_share": Entry("share", "ranks of the policy's LoRA reset after this iteration"),
    "reset/lora_share/layer_<k>": Entry("share", "of the k-th adapter's ranks"),
    "reset/lora_overlap": Entry("share", "ranks reset now and last time, of those reset in either (Jaccard index)"),
    "reset/share/layer_<k>": Entry("share", "of the k-th hidden layer, where a reset was made"),
    "reset/overlap": Entry("share", "neurons reset now and last time, of those reset in either (Jaccard index)"),
    "reset/explained_variance_before": Entry("share", "of the critic on the iteration's samples, before the reset"),
    "reset/explained_variance_after": Entry("share", "the same after it"),
    "reset/recovery": Entry(
        "iterations", "from the last reset until critic/explained_variance was back where it was, once it is"
    ),
    "eval/<reward>/mean": Entry("reward", "raw reward on the evaluation prompts and seeds"),
    "eval/<reward>/std": Entry("reward", "its population standard deviation over pictures"),
    "eval/<reward>/base_sd": Entry("reward", "standard deviation of the base's samples within a prompt, pooled"),
    "eval/<reward>/gain": Entry("base sd", "gain over the base picture of the same prompt and seed"),
    "eval/<reward>/gain_low": Entry("base sd", "lower end of its 95% interval (bootstrap over prompts)"),
    "eval/<reward>/gain_high": Entry("base sd", "upper end of its 95% interval"),
    "eval/<reward>/win_rate": Entry("share", "pictures scored above the base's of the same prompt and seed; ties half"),
    "eval/<reward>/below_peak": Entry("base sd", "highest gain so far minus the gain now; of gold: overoptimization"),
    "eval/<reward>/gap": Entry("base sd", "gain of the trained reward minus the gain of this one"),
    "held_out/<reward>/<measure>": Entry("", "each of the above on prompts that no run trains on"),
    "watch/signal": Entry("", "what the overoptimization watch follows, in the unit of callbacks.watch.signal"),
    "watch/below_peak": Entry("", "its highest value so far minus its value now"),
    "watch/alarm": Entry("0 or 1", "1 from the alarm on"),
    "best_of_n/n": Entry("samples", "base samples a prompt that the best was chosen from, by the trained reward"),
    "pictures/distance": Entry("1 - cos", "mean pairwise feature distance within a prompt"),
    "pictures/vendi": Entry("pictures", "Vendi score within a prompt: effective number of different pictures"),
    "pictures/lpips": Entry("LPIPS", "mean pairwise LPIPS within a prompt; with evaluation.lpips_network"),
    "pictures/drift": Entry("1 - cos", "feature distance from the base picture of the same prompt and seed"),
    "pictures/saturation": Entry("0..1", "HSV saturation, mean over pixels"),
    "pictures/dark_share": Entry("share", "pixels with luma below 0.1"),
    "pictures/bright_share": Entry("share", "pixels with luma above 0.9"),
    "pictures/edge_density": Entry("luma", "mean absolute difference of neighbouring pixels, both directions added"),
    "pictures/colour_entropy": Entry("bits", "entropy of the histogram over 64 colours"),
    "pictures/jpeg_bytes": Entry("bytes", "size as JPEG of quality 90"),
    "kl/trajectory": Entry("nats", "KL from the base over whole trajectories, exact in each step, at visited states"),
    "kl/sqrt": Entry("nats^(1/2)", "its square root"),
    "kl/step_<k>": Entry("nats", "its share of the k-th denoising step, from the noisiest on"),
}

# what stands in <...>
PARTS = {"<reward>": "[a-z0-9_]+", "<measure>": "[a-z_]+", "<k>": "[0-9]+"}


@functools.cache
def lookup(key: str) -> Entry:
    """The entry of a logged key. Raises KeyError on one that is not in the glossary."""
    for pattern, entry in GLOSSARY.items():
        expression = re.escape(pattern)
        for name, meaning in PARTS.items():
            expression = expression.replace(name, meaning)
        if re.fullmatch(expression, key):
            return entry
    raise KeyError(f"{key} is logged but not in src/metrics/glossary.py")
