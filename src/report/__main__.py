"""`python -m src.report RUN_OR_FOLDER... [--x kl] [--output report.html]`: a page of a run, several or a sweep."""

import argparse

from src.errors import UserError, told_in_one_sentence
from src.files import reason, user_path
from src.report.page import write_report
from src.report.runs import CHOICES, find_runs, lay_out
from src.screen import survive_its_end


def main() -> None:
    """Writes the page of the runs that the command line names."""
    survive_its_end()
    parser = argparse.ArgumentParser(prog="python -m src.report", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN_OR_FOLDER", help="run folders, or folders with runs below them")
    parser.add_argument(
        "--x", choices=list(CHOICES), help="what all curves are drawn over; default: what fits each run"
    )
    parser.add_argument("--output", type=user_path, help="default: report.html in the first of them")
    args = parser.parse_args()
    with told_in_one_sentence():
        runs = find_runs(args.runs)
        lay_out(runs, args.x)
        target = args.output or user_path(args.runs[0]) / "report.html"
        if not target.parent.is_dir():
            raise UserError(f"--output={target}: there is no folder {target.parent}.")
        try:
            print(write_report(runs, target))
        except OSError as error:
            why = reason(target, error)
            raise UserError(f"{target} cannot be written: {why}; name another place by --output=FILE.") from error


if __name__ == "__main__":
    main()
