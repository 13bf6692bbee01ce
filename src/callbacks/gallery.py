"""Pictures for a person to look at: the same prompts and seeds over time, and where the reward was hacked worst."""

import io
from collections.abc import Sequence
from pathlib import Path

import torch
import wandb
from jaxtyping import Float
from lightning import Trainer
from PIL import Image, ImageDraw
from torch import Tensor

from src.callbacks.labels import NOTE, fitted, is_spelt, label_font, legible
from src.files import make_folder, write_bytes
from src.learner import Learner
from src.loggers.tracker import Tracker
from src.metrics.glossary import lookup

COLUMNS, LINE = 8, 14  # pictures in a row; height of a label's line, pixels

Scores = dict[str, Float[Tensor, " n"]]


class Gallery:
    """Writes grids below a run folder and sends them, with a table of pictures and scores, to W&B with the next row.

    Args:
        pictures: how many are shown, the first of the evaluation's.
    """

    def __init__(self, folder: Path, pictures: int):
        self.folder, self.pictures = folder, pictures

    def show(
        self,
        trainer: Trainer,
        learner: Learner,
        images: Float[Tensor, "n 3 h w"],
        prompts: list[str],
        seeds: list[int],
        scores: Scores,
    ) -> None:
        """The first pictures: samples/00020.png, labelled with the trained reward, and every reward in a table."""
        n, trained = len(images), learner.reward_name
        ends = [f" {score:.1f}" for score in scores[trained][:n].tolist()] if trained else None
        grid = picture_grid(images, prompts[:n], ends=ends)
        self._save(grid, f"{learner.iteration:05d}.png")
        rows = [
            [prompts[k], str(seeds[k]), as_jpeg(picture), *(values[k].item() for values in scores.values())]
            for k, picture in enumerate(images)
        ]
        table = wandb.Table(columns=["prompt", "seed", "picture", *scores], data=rows)
        self._log(trainer, {"samples": self._captioned(learner, grid), "pictures_and_scores": table})

    def show_hacks(
        self,
        trainer: Trainer,
        learner: Learner,
        prompts: list[str],
        seeds: list[int],
        gains: Scores,
        judge: str | None,
    ) -> None:
        """samples/hacks.png: where the trained reward rose most against the judge, the base's pictures above today's.

        Without a judge the mean of the other rewards stands in. `gains` are in base sd.
        """
        name = learner.reward_name
        others = [other for other in gains if other != name]
        if not others or name is None or name not in gains:
            return
        judge = judge if judge in gains else None
        trained = gains[name]
        against = gains[judge] if judge else torch.stack([gains[other] for other in others]).mean(0)
        worst = (trained - against).argsort(descending=True, stable=True)[:COLUMNS].tolist()
        chosen = [prompts[k] for k in worst], [seeds[k] for k in worst]
        with trainer.precision_plugin.forward_context():
            now = learner.drawn_from.sample(*chosen).images
            with learner.drawn_from.as_base():
                before = learner.drawn_from.sample(*chosen).images
        labels = [*chosen[0], *[name] * len(worst)]
        ends = [""] * len(worst) + [f" {trained[k]:+.1f}, {judge or 'others'} {against[k]:+.1f}" for k in worst]
        grid = picture_grid(torch.cat([before, now]), labels, columns=len(worst), size=160, ends=ends)
        self._save(grid, "hacks.png")
        self._log(trainer, {"hacks": self._captioned(learner, grid)})

    def _save(self, grid: Image.Image, name: str) -> None:
        save_png(grid, make_folder(self.folder) / name)

    def _captioned(self, learner: Learner, grid: Image.Image) -> wandb.Image:
        when = learner.when.format(learner.reward_queries)
        at = f"iteration {learner.iteration}, {when}"
        labelled = f"; label: {learner.reward_name}" if learner.reward_name else ""
        return wandb.Image(grid, caption=f"{at}{labelled}")

    def _log(self, trainer: Trainer, media: dict) -> None:
        for key in media:
            lookup(key)  # nothing is logged that the glossary does not explain
        for logger in trainer.loggers:
            if isinstance(logger, Tracker):
                logger.add_media(media)


def save_png(picture: Image.Image, path: Path) -> None:
    """Whole or not at all."""
    encoded = io.BytesIO()
    picture.save(encoded, "PNG")
    write_bytes(path, encoded.getvalue())


def as_image(picture: Float[Tensor, "3 h w"]) -> Image.Image:
    """A picture in [0, 1], what lies outside clamped, in 8 bits."""
    return Image.fromarray((picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy())


def as_jpeg(picture: Float[Tensor, "3 h w"]) -> wandb.Image:
    """The same as W&B takes it, compressed."""
    return wandb.Image(as_image(picture), file_type="jpg")


def picture_grid(
    images: Tensor,
    labels: Sequence[str],
    columns: int = COLUMNS,
    size: int = 128,
    ends: Sequence[str] | None = None,
) -> Image.Image:
    """Pictures [b, 3, h, w] in [0, 1] as one grid, each with its label below, which is cut where its cell ends.

    `ends` are what no cut takes away from the labels. Where letters are spelt that the font lacks, a last line says so.
    """
    rows, spelt = -(-len(images) // columns), is_spelt(labels)
    canvas = Image.new("RGB", (columns * size, rows * (size + LINE) + LINE * spelt), "white")
    draw = ImageDraw.Draw(canvas)
    for k, (picture, label, end) in enumerate(zip(images, labels, ends or [""] * len(labels), strict=True)):
        x, y = k % columns * size, k // columns * (size + LINE)
        canvas.paste(as_image(picture).resize((size, size), Image.Resampling.BICUBIC), (x, y))
        draw.text((x + 3, y + size), fitted(legible(label), size - 6, legible(end)), fill="black", font=label_font())
    if spelt:
        draw.text((3, rows * (size + LINE)), fitted(NOTE, columns * size - 6), fill="black", font=label_font())
    return canvas
