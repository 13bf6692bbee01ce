"""Experiments on reward overoptimization in diffusion-model alignment."""
