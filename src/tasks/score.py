"""Scores pictures of any origin by every reward of a suite; see src/score.py for the command. No pipeline is loaded."""

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from src.config import check
from src.errors import UserError
from src.pictures import (
    BadPicture,
    Picture,
    Pixels,
    as_images,
    find_pictures,
    metadata_of,
    opened,
    partners,
    with_prompts,
)
from src.progress import track
from src.report.scores import (
    Scored,
    Scores,
    by_prompt_file,
    check_out,
    not_taken,
    overall,
    picture_rows,
    prompt_rows,
    prompt_table,
    write_rows,
)
from src.rewards.base import RewardModel
from src.rewards.building import build_rewards
from src.screen import quieten, show

BATCH, WAITING_BYTES = 64, 64 * 1024**2  # pictures of one size scored at a time; bytes of all sizes that may wait
NAMED = 5  # pictures passed over that are told by name


def run(args: argparse.Namespace) -> Scored:
    """The whole command, from its arguments to its tables."""
    found = score(args)
    tell(found, args.out)
    return found


def score(args: argparse.Namespace) -> Scored:
    """Finds, checks and scores. Raises UserError on whatever would make a figure wrong."""
    quieten()
    if args.out is not None:
        check_out(args.out, [file for file in (args.pictures, args.prompts, args.against) if file is not None])
    pictures, faults = with_prompts(find_pictures(args.pictures), args.prompts or metadata_of(args.pictures))
    others: list[Picture] = []
    if args.against is not None:
        pairs, alone = partners(pictures, find_pictures(args.against))
        pictures, others, faults = [a for a, _ in pairs], [b for _, b in pairs], faults + alone
    refuse(faults, args.skip_bad)
    rewards, judges = suite_rewards(args.suite, args.overrides, args.rewards)
    scores, bad = score_pictures([*pictures, *others], rewards, args.skip_bad)
    refuse(faults := faults + list(bad.values()), args.skip_bad)
    n = len(pictures)
    sound = [k for k in range(n) if not {k, k + n} & bad.keys()]
    if not sound:
        raise UserError(f"{args.pictures}: not one of its pictures can be scored ({faults[0]}).")
    if faults:
        print(f"passed over, {len(faults)} in all:")
        for sentence in by_reason(faults):
            print(f"  {sentence}")
    found = Scored(
        [pictures[k] for k in sound],
        {name: values[sound] for name, values in scores.items()},
        [name for name in rewards if name not in judges],
    )
    if others:
        found.partners = [others[k] for k in sound]
        found.base = {name: values[[k + n for k in sound]] for name, values in scores.items()}
    return found


def by_reason(faults: Sequence[BadPicture]) -> list[str]:
    """Which pictures were passed over for one reason, the most frequent first; the details of each are left out."""
    groups: dict[str, list[str]] = defaultdict(list)
    for fault in faults:
        groups[fault.reason.split(" (")[0]].append(fault.name)
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    return [
        f"{len(names):,}, {reason}: {', '.join(names[:NAMED])}{', ...' if len(names) > NAMED else ''}"
        for reason, names in ordered
    ]


def refuse(faults: Sequence[BadPicture], skip_bad: bool) -> None:
    """Raises UserError at the first fault, unless bad pictures are passed over; the others are counted."""
    if faults and not skip_bad:
        more = f" (and {len(faults) - 1} more, such as {faults[1].name})" if len(faults) > 1 else ""
        raise UserError(f"{faults[0]}{more}; mend it, or pass over such pictures by --skip-bad.")


def suite_rewards(suite: str, overrides: Sequence[str], chosen: str | None) -> tuple[dict[str, RewardModel], set[str]]:
    """The rewards and judges of a suite by name, or those of them that are chosen; and which are judges."""
    with initialize_config_dir(str(Path(__file__).parents[2] / "conf"), version_base="1.3"):
        cfg = check(compose("config", [f"suite={suite}", *overrides]))
    judges = cfg["suite"]["judges"] or {}
    configs = cfg["suite"]["rewards"] | judges
    names = chosen.split(",") if chosen else list(configs)
    for name in names:
        if name not in configs:
            raise UserError(f"--rewards={chosen}: {name!r} is none of suite={suite}'s: {', '.join(configs)}.")
    return build_rewards({name: configs[name] for name in names}), set(judges)


def score_pictures(
    pictures: Sequence[Picture], rewards: Mapping[str, RewardModel], skip_bad: bool
) -> tuple[Scores, dict[int, BadPicture]]:
    """Every reward's score of every picture, nan where there is none; and by place those that cannot be opened.

    Pictures of one size make a batch; each reward resizes them in its own way. Unless bad ones are passed over, those
    after the first of them are only opened, so that all are known.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models = {name: (model.to(device), prompts_taken(model, pictures)) for name, model in rewards.items()}
    scores = {name: torch.full((len(pictures),), torch.nan) for name in rewards}
    bad: dict[int, BadPicture] = {}
    waiting: dict[tuple, dict[int, Pixels]] = defaultdict(dict)  # by size and depth, then by place

    def flush(size: tuple) -> None:
        batch = waiting.pop(size)
        images = as_images(list(batch.values()), device)
        for name, (model, taken) in models.items():
            places = [k for k in batch if pictures[k].prompt in taken]
            if places:
                own = images[[k in places for k in batch]]
                scores[name][places] = model.score(own, [str(pictures[k].prompt) for k in places]).cpu()

    for k, pixels in track(opened(pictures), f"scoring {len(pictures):,} pictures", total=len(pictures)):
        if isinstance(pixels, BadPicture):
            bad[k] = pixels
        elif not bad or skip_bad:
            size = (*pixels.shape, pixels.dtype.name)
            waiting[size][k] = pixels
            if len(waiting[size]) == BATCH:
                flush(size)
            while sum(map(_bytes, waiting.values())) > WAITING_BYTES:
                flush(max(waiting, key=lambda size: _bytes(waiting[size])))
    if not bad or skip_bad:
        for size in list(waiting):
            flush(size)
    return scores, bad


def _bytes(batch: Mapping[int, Pixels]) -> int:
    return sum(pixels.nbytes for pixels in batch.values())


def prompts_taken(reward: RewardModel, pictures: Sequence[Picture]) -> set[str]:
    """The prompts that a reward can score; a judge may know some only."""
    taken = set()
    for prompt in {str(picture.prompt) for picture in pictures}:
        try:
            reward.check_prompts([prompt])
            taken.add(prompt)
        except UserError:
            continue
    return taken


def tell(found: Scored, out: Path | None) -> None:
    """Tables on the screen, and files where they are asked for."""
    show(overall(found))
    by_prompt = prompt_rows(found)
    if len(by_prompt) > 1:
        show(prompt_table(by_prompt, list(found.scores), compared=found.base is not None))
    joint = found.joint()
    if joint:
        up, down = joint["joint_domination"], joint["joint_collapse"]
        print(f"better under all of {', '.join(found.rewards)}: {up:.0%} of the pairs; worse under all: {down:.0%}")
    for sentence in not_taken(found):
        print(sentence)
    if out is not None:
        write_rows(picture_rows(found), out)
        write_rows(by_prompt, by_prompt_file(out))
        print(f"every picture: {out}   by prompt: {by_prompt_file(out)}")
