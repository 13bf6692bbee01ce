"""Pictures of any origin, scored by every reward of a suite: `python -m src.score PICTURES --prompts FILE`.

PICTURES is a folder, with those inside it, or a table (CSV, TSV, JSON, JSONL, parquet) with a column of paths; without
--prompts, prompts are those of the table, of a metadata.jsonl in the folder, or the pictures' names. KEY=VALUE
overrides the configuration, such as suite.rewards.hps.path=FILE.
"""

import argparse

from src.errors import told_in_one_sentence
from src.files import user_path
from src.screen import survive_its_end


def parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(prog="python -m src.score", description=__doc__)
    parser.add_argument(
        "pictures", type=user_path, metavar="PICTURES", help="a folder and those inside it, or a table of paths"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the configuration")
    parser.add_argument("--prompts", type=user_path, metavar="FILE", help="one a line, or a table of paths and prompts")
    parser.add_argument(
        "--against", type=user_path, metavar="PICTURES", help="pictures of the same names to compare with"
    )
    parser.add_argument("--suite", default="mini", help="whose rewards score; default: mini")
    parser.add_argument("--rewards", metavar="NAME,...", help="these alone; default: all of the suite, and its judges")
    parser.add_argument("--out", type=user_path, metavar="FILE", help="table of every picture, .csv or .parquet")
    parser.add_argument("--skip-bad", action="store_true", help="pass over pictures that cannot be scored")
    return parser


def main() -> None:
    """Scores what the command line names."""
    survive_its_end()
    args = parser().parse_intermixed_args()
    with told_in_one_sentence():
        from src.tasks import score  # torch and its friends, which take seconds

        score.run(args)


if __name__ == "__main__":
    main()
