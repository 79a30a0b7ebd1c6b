"""A stream of the tiny model that tests of policies share."""

import numpy as np

from resv.trace import LayerTrace, Step
from tests.shapes import TINY

N_TOKENS = 90


class TinyTrace:
    """Frames of four tokens that drift slowly, so that clusters form; a question and a decode probe."""

    shape = TINY
    n_tokens = N_TOKENS
    steps = tuple(Step("frame", t, min(4, N_TOKENS - t)) for t in range(0, N_TOKENS, 4))
    probes = (
        Step("frame", 0, 4, in_stream=False),
        Step("frame", 40, 4, in_stream=False),
        Step("question", 70, 5, in_stream=False),
        Step("decode", N_TOKENS, 1, in_stream=False),
    )

    def __init__(self, layer=1, seed=0):
        rng = np.random.default_rng(seed)
        places = rng.standard_normal((4, 2, 16))
        drift = 0.05 * rng.standard_normal((N_TOKENS, 2, 16)).cumsum(axis=0)
        stored = (places[np.arange(N_TOKENS) % 4] + drift).astype(np.float32)

        def normal(*shape):
            return rng.standard_normal(shape, dtype=np.float32)

        queries, predicted = (tuple(2 * normal(4, p.n_tokens, 16) for p in self.probes) for _ in range(2))
        self.layer_trace = LayerTrace(
            layer=layer,
            keys=stored.transpose(1, 0, 2),
            values=normal(N_TOKENS, 2, 16).transpose(1, 0, 2),
            queries=queries,
            predicted_queries=None if layer == 0 else predicted,
            step_keys=tuple(normal(2, p.n_tokens, 16) for p in self.probes),
            step_values=tuple(normal(2, p.n_tokens, 16) for p in self.probes),
        )


class TinySession(TinyTrace):
    """Eight frames, a question of five tokens, six decode steps; every step is probed and stays in the stream."""

    steps = (
        *(Step("frame", t, 4) for t in range(0, 32, 4)),
        Step("question", 32, 5),
        *(Step("decode", t, 1) for t in range(37, 43)),
    )
    probes = steps
    n_tokens = 43

    def __init__(self, layer=1, seed=0):
        super().__init__(layer, seed)
        lt = self.layer_trace
        spans = [slice(p.first_token, p.first_token + p.n_tokens) for p in self.probes]
        self.layer_trace = LayerTrace(
            layer=layer,
            keys=lt.keys[:, : self.n_tokens],
            values=lt.values[:, : self.n_tokens],
            queries=lt.queries,
            predicted_queries=lt.predicted_queries,
            step_keys=tuple(lt.keys[:, s] for s in spans),
            step_values=tuple(lt.values[:, s] for s in spans),
        )
