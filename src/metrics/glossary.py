"""Every key that a run may log, with its unit, meaning and source. `<reward>` stands for a reward's name.

`python -m docs.generate` writes docs/metrics.md from it.
"""

import functools
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One logged key."""

    unit: str
    meaning: str
    source: str = ""  # paper and equation, where there is one


GLOSSARY: dict[str, Entry] = {
    "kind": Entry("-", "what the row is: iteration, evaluation or watch"),
    "iteration": Entry("iterations", "rounds of sampling and training done"),
    "reward_queries": Entry(
        "images",
        "images scored for training; the x-axis of every curve; of controls what one picture costs; of others' "
        "checkpoints the number in their names, where queries_per_step does not say more",
    ),
    "reward_gradients": Entry(
        "images", "images that the reward's gradient was taken of, for training; of controls for one picture"
    ),
    "optimizer_steps": Entry("steps", "optimizer steps of the policy"),
    "seconds": Entry("s", "training time so far, evaluation and logging excluded"),
    "reward/<reward>/mean": Entry("reward", "raw training reward, mean over the iteration's samples"),
    "reward/<reward>/std": Entry("reward", "raw training reward, population standard deviation"),
    "train/loss": Entry("nats", "loss of a reward model in training, mean over the epoch (aesthetic: squared error)"),
    "val/loss": Entry("nats", "the same on held-out comparisons"),
    "policy/loss": Entry("-", "PPO-clipped surrogate loss, mean over optimizer steps", "Schulman et al. 2017, eq. 7"),
    "policy/ratio_mean": Entry("-", "mean of pi_theta / pi_old; densities per latent dimension (log-mean)"),
    "policy/ratio_std": Entry("-", "standard deviation of pi_theta / pi_old over the rows of the iteration's updates"),
    "policy/clip_fraction": Entry("share", "rows whose gradient the clip took away", "Schulman et al. 2017, eq. 7"),
    "policy/<measure>/step_<k>": Entry("", "each of the three above at the k-th denoising step, noisiest first"),
    "policy/grad_norm": Entry("-", "gradient norm of the policy before clipping, mean over optimizer steps"),
    "policy/grad_norm/step_<k>": Entry(
        "-", "the same of the k-th denoising step's updates, where each has one timestep"
    ),
    "policy/advantage_std": Entry("sd", "standard deviation of the advantages over samples and timesteps"),
    "kl/reference": Entry(
        "nats", "KL of the policy that sampled from its reference, a trajectory's, at visited states"
    ),
    "gardo/quantile": Entry("share", "q: of the samples that rewards disagree on, those that pay", "GARDO, 2512.24138"),
    "gardo/gated": Entry("share", "samples that pay the KL", "GARDO, 2512.24138"),
    "gardo/diversity": Entry("-", "mean factor of credit, by distance from others of the prompt", "GARDO, 2512.24138"),
    "nft/eta": Entry("share", "of v_old that is kept when it follows v", "Zheng et al. 2025 (DiffusionNFT)"),
    "preference/accuracy": Entry("share", "pairs whose preferred sample the policy has raised more than the other"),
    "regulariser/loss": Entry("-", "what the regulariser adds to the policy's loss, mean over optimizer steps"),
    "regulariser/beta": Entry("sd / nat", "coefficient of the KL in this iteration", "Ziegler et al. 2019"),
    "regulariser/moved": Entry("0 or 1", "1 where the reference became the policy after this iteration"),
    "critic/loss": Entry(
        "reward^2",
        "clipped regression loss in normalised reward, mean over optimizer steps",
        "Zhang et al. 2024 (TDPO), section 4.1",
    ),
    "critic/grad_norm": Entry("-", "gradient norm of the critic before clipping, mean over optimizer steps"),
    "critic/explained_variance": Entry("share", "1 - Var(G - V) / Var(G) on fresh samples, before the update"),
    "critic/explained_variance/step_<k>": Entry("share", "the same at the k-th denoising step"),
    "critic/value_mean": Entry("sd", "mean value, in normalised reward, before the update"),
    "critic/value_std": Entry("sd", "standard deviation of the values over samples and timesteps; 0: V is a constant"),
    "neurons/dormant_0": Entry(
        "share", "hidden critic neurons with score <= 0; the active share is 1 minus this", "Sokar et al. 2023, eq. 1"
    ),
    "neurons/dormant_0.025": Entry("share", "hidden critic neurons with score <= 0.025", "Sokar et al. 2023, eq. 1"),
    "neurons/dormant_0.1": Entry("share", "hidden critic neurons with score <= 0.1", "Sokar et al. 2023, eq. 1"),
    "neurons/gradient_dormant_0": Entry(
        "share", "the same by gradient: score <= 0", "Liu et al. 2025 (GraMa), arXiv 2505.24061"
    ),
    "neurons/gradient_dormant_0.025": Entry(
        "share", "by gradient, score <= 0.025", "Liu et al. 2025 (GraMa), arXiv 2505.24061"
    ),
    "neurons/gradient_dormant_0.1": Entry(
        "share", "by gradient, score <= 0.1", "Liu et al. 2025 (GraMa), arXiv 2505.24061"
    ),
    "neurons/few_states_dormant_0": Entry(
        "share", "by activation on eight states at random, one GPU's batch in the authors' code: score <= 0"
    ),
    "neurons/few_states_dormant_0.025": Entry("share", "on eight states, score <= 0.025"),
    "neurons/few_states_dormant_0.1": Entry("share", "on eight states, score <= 0.1"),
    "reset/share": Entry("share", "hidden critic neurons reset after this iteration", "Zhang et al. 2024 (TDPO-R)"),
    "reset/lora_share": Entry("share", "ranks of the policy's LoRA reset after this iteration"),
    "reset/lora_share/layer_<k>": Entry("share", "of the k-th adapter's ranks"),
    "reset/lora_overlap": Entry("share", "ranks reset now and last time, of those reset in either (Jaccard index)"),
    "reset/share/layer_<k>": Entry("share", "of the k-th hidden layer, where a reset was made"),
    "reset/overlap": Entry("share", "neurons reset now and last time, of those reset in either (Jaccard index)"),
    "reset/explained_variance_before": Entry(
        "share",
        "of the critic before the reset, on the iteration's samples after the update that was fitted to them: higher "
        "than critic/explained_variance, which is of fresh samples",
    ),
    "reset/explained_variance_after": Entry("share", "the same after the reset"),
    "reset/recovery": Entry(
        "iterations",
        "from the last reset until critic/explained_variance is at least what it was in the reset's iteration, once it "
        "is; each reset counts anew, so that with reset.every=1 it is 1 or missing",
    ),
    "eval/<reward>/mean": Entry("reward", "raw reward on the evaluation prompts and seeds"),
    "eval/<reward>/std": Entry("reward", "its population standard deviation over pictures"),
    "eval/<reward>/base_sd": Entry(
        "reward",
        "standard deviation of the base's samples within a prompt, pooled; where held-out prompts have one picture "
        "each, that of the training prompts",
    ),
    "eval/<reward>/gain": Entry("base sd", "gain over the base picture of the same prompt and seed"),
    "eval/<reward>/gain_low": Entry(
        "base sd", "lower end of its 95% interval (bootstrap over prompts, given the base sd)", "Efron 1979"
    ),
    "eval/<reward>/gain_high": Entry("base sd", "upper end of its 95% interval"),
    "eval/<reward>/win_rate": Entry("share", "pictures scored above the base's of the same prompt and seed; ties half"),
    "eval/<reward>/below_peak": Entry(
        "base sd",
        "highest gain so far minus the gain now; of gold: overoptimization. Never below 0: noise alone raises it",
        "Gao et al. 2023, arXiv 2210.10760",
    ),
    "eval/<reward>/gap": Entry(
        "base sd", "gain of the trained reward minus the gain of this one", "Gao et al. 2023, arXiv 2210.10760"
    ),
    "eval/<reward>/kl_area": Entry(
        "base sd x nats^(1/2)",
        "area under its gain over kl/sqrt, as far as the run has gone",
        "Gao et al. 2023, figure 1",
    ),
    "eval/joint_domination": Entry(
        "share", "pictures that gain under all rewards at once, judges apart, over the base's", "arXiv 2605.13155"
    ),
    "eval/joint_collapse": Entry("share", "pictures that lose under all of them at once", "arXiv 2605.13155"),
    "held_out/<reward>/<measure>": Entry("", "each of the above on prompts that no run trains on"),
    "held_out/joint_domination": Entry("share", "the same on prompts that no run trains on"),
    "held_out/joint_collapse": Entry("share", "likewise"),
    "eval_ema/<reward>/<measure>": Entry(
        "", "eval/<reward>/<measure> of the averaged weights, same prompts and seeds; with regulariser=ema"
    ),
    "eval_ema/<measure>": Entry("share", "eval/joint_domination and eval/joint_collapse of the averaged weights"),
    "held_out_ema/<reward>/<measure>": Entry("", "the same on prompts that no run trains on"),
    "held_out_ema/<measure>": Entry("share", "likewise"),
    "kl_ema/<measure>": Entry("", "kl/trajectory and kl/sqrt of the averaged weights"),
    "pictures_ema/<measure>": Entry("", "pictures/<measure> of theirs"),
    "policy/scale": Entry("share", "of what fine-tuning changed, how much an evaluation of weights has taken up"),
    "policy/checkpoint": Entry("-", "number of the checkpoint, where its reward queries are not known"),
    "policy/aig": Entry(
        "-",
        "p of annealed importance guidance, by which the base draws at high noise; 0 is the tuned model",
        "arXiv 2409.06493",
    ),
    "watch/signal": Entry("", "what the overoptimization watch follows, in the unit of callbacks.watch.signal"),
    "watch/below_peak": Entry("", "its highest value so far minus its value now"),
    "watch/alarm": Entry("0 or 1", "1 from the alarm on"),
    "best_of_n/n": Entry(
        "samples",
        "base samples a prompt that the best was chosen from, by the trained reward",
        "Nakano et al. 2021, appendix I",
    ),
    "code/n": Entry(
        "samples",
        "candidates of a block that the best was chosen from, by the trained reward; 1: the base",
        "arXiv 2502.00968",
    ),
    "das/particles": Entry("particles", "how many are drawn for a picture", "arXiv 2501.05803"),
    "das/alpha": Entry(
        "base sd / nat", "temperature of the trained reward: exp(r / alpha) tilts the base", "arXiv 2501.05803"
    ),
    "pictures/distance": Entry("1 - cos", "mean pairwise feature distance within a prompt"),
    "pictures/vendi": Entry(
        "pictures",
        "Vendi score within a prompt: effective number of different pictures; at most as many as a prompt has",
        "Friedman and Dieng 2023, eq. 1",
    ),
    "pictures/lpips": Entry(
        "LPIPS",
        "mean pairwise LPIPS within a prompt; with evaluation.lpips_network",
        "Zhang et al. 2018, arXiv 1801.03924",
    ),
    "pictures/drift": Entry("1 - cos", "feature distance from the base picture of the same prompt and seed"),
    "pictures/saturation": Entry("0..1", "HSV saturation, mean over pixels", "Smith 1978 (HSV)"),
    "pictures/dark_share": Entry("share", "pixels with luma below 0.1", "luma: Rec. 601"),
    "pictures/bright_share": Entry("share", "pixels with luma above 0.9", "luma: Rec. 601"),
    "pictures/edge_density": Entry(
        "luma", "mean absolute difference of neighbouring pixels, both directions added", "luma: Rec. 601"
    ),
    "pictures/colour_entropy": Entry("bits", "entropy of the histogram over 64 colours"),
    "pictures/jpeg_bytes": Entry("bytes", "size as JPEG of quality 90"),
    "samples": Entry("pictures", "the same prompts and seeds at every evaluation, labelled with the trained reward"),
    "pictures_and_scores": Entry("table", "their prompts, seeds, pictures, and scores by every reward"),
    "hacks": Entry("pictures", "where the trained reward rose most against the judge; the base's above"),
    "kl/trajectory": Entry(
        "nats",
        "KL from the base over whole trajectories, exact in each step, at visited states",
        "Fan et al. 2023 (DPOK)",
    ),
    "kl/sqrt": Entry("nats^(1/2)", "its square root", "Bai et al. 2022; Gao et al. 2023"),
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


def as_markdown() -> str:
    """The whole glossary as a table."""
    rows = [("key", "unit", "meaning", "source"), ("---",) * 4]
    rows += [(f"`{key}`", entry.unit, entry.meaning, entry.source) for key, entry in GLOSSARY.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
