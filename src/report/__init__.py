"""Runs in, one self-contained HTML page out: `python -m src.report RUN_OR_FOLDER...`."""
