"""`python -m src.report RUN_OR_FOLDER... [--output report.html]`: one page of a run, several runs or a sweep."""

import argparse
import sys
from pathlib import Path

from src.errors import UserError
from src.report.page import write_report
from src.report.runs import find_runs


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m src.report", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN_OR_FOLDER", help="run folders, or folders with runs below them")
    parser.add_argument("--output", type=Path, help="default: report.html in the first of them")
    args = parser.parse_args()
    try:
        runs = find_runs(args.runs)
        target = args.output or Path(args.runs[0]) / "report.html"
        if not target.parent.is_dir():
            raise UserError(f"--output={target}: there is no folder {target.parent}.")
        print(write_report(runs, target))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
