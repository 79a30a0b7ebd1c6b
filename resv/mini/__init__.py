"""A small streaming video language model of our own, and the world it was trained on.

`streams.make_stream(StreamConfig(...))` renders a seeded stream of real pixels with its questions, right answers and
narration; `weights.load_mini()` gives the trained model: a patch encoder in front of a `LlamaForCausalLM`, into which
every policy attaches as into any other Hugging Face model. `evaluation.answer_stream` answers with the full cache, and
`tasks.BlindBaseline` without seeing anything. Streams and questions need numpy and Numba only; the model needs torch
and transformers. `scripts/train_mini.py` makes the weights and their card, `data/MODEL_CARD.md`.
"""
