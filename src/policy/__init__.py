"""The policy: a pipeline and a sampler, put together and fine-tuned."""
