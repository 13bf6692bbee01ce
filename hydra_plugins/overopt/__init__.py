"""Plugins of our own where Hydra's do not install beside current packages; Hydra finds them by this folder's name."""
