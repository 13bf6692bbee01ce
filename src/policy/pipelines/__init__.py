"""Families of diffusers pipelines: their networks, and what these are told of prompts."""
