"""Tiny models, embeddings and sessions for the tests of policies inside models."""

from functools import cache

import torch

import resv
from resv.huggingface.families import Cursor, family_of
from resv.huggingface.tiny import TINY_MODELS, tiny_model

MODELS = tuple(TINY_MODELS)
# Nine frames of four tokens, a question and two decoded tokens: (tokens, kind).
SESSION = [(4, "frame")] * 9 + [(5, "question"), (1, "decode"), (1, "decode")]
N_TOKENS = sum(n for n, _ in SESSION)


@cache
def model_named(name):
    """Shared: what a test attaches it must detach."""
    return tiny_model(name)


def embeds(model, n_tokens=N_TOKENS, batch=1, seed=0):
    hidden = model.config.get_text_config().hidden_size
    made = torch.randn(batch, n_tokens, hidden, generator=torch.Generator().manual_seed(seed))
    return made.to(model.dtype)


def steps(x, session=SESSION):
    """`x` cut into (embeds, kind)."""
    return list(zip(x.split([n for n, _ in session], dim=1), (kind for _, kind in session), strict=True))


def run(model, policy, x, session=SESSION, **options):
    """Stream `x` through the model; hidden states of all tokens, and selections per step."""
    with resv.attach(model, policy, **options) as attachment:
        stream = attachment.new_stream(len(x))
        hidden, selections = [], []
        for part, kind in steps(x, session):
            hidden.append(stream.forward(part, kind).hidden)
            selections.append(stream.last_selections)
    return torch.cat(hidden, dim=1), selections


def at_once(model, x, session=SESSION):
    """Hidden states of all tokens in one pass of the model as transformers runs it, eager attention."""
    family = family_of(model)
    decoder = family.decoder(model)
    cursor, positions = Cursor(), []
    for n, kind in session:
        made, cursor = family.step_positions(cursor, n, kind, None, 4.0)
        positions.append(made)
    ids = torch.cat(positions, dim=-1)
    ids = ids[:, None].expand(-1, len(x), -1) if ids.ndim == 2 else ids.expand(len(x), -1)
    before = decoder.config._attn_implementation
    decoder.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            return decoder(inputs_embeds=x, position_ids=ids, use_cache=False).last_hidden_state
    finally:
        decoder.set_attn_implementation(before)
