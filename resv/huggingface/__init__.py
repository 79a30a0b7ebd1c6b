"""Policies inside Hugging Face models: `attach`, streams of steps, recording, comparing. Needs the extra `hf`.

Nothing outside this package imports transformers, and nothing here does before a model is attached or made.
"""
