"""Runs on disk, resuming, and sweeps."""
