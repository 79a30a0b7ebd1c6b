"""Slow, evident twins of the rival policies: which tokens each keeps, and what it computes for that.

Everything in Python floats and loops. A twin returns (kept tokens, scores computed, multiply-accumulates).
"""

from __future__ import annotations

import math


def dot(a, b):
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def mean(vectors):
    vectors = list(vectors)
    return [sum(float(v[i]) for v in vectors) / len(vectors) for i in range(len(vectors[0]))]


def best(scores, k):
    """Keys of the k largest of a dictionary, ties to the smallest key."""
    return sorted(scores, key=lambda key: (-scores[key], key))[:k]


def turned(vector, position, theta):
    """Rotary embedding, pair (i, i + D/2)."""
    half = len(vector) // 2
    out = [0.0] * len(vector)
    for i in range(half):
        angle = position * theta ** (-2 * i / len(vector))
        x, y = float(vector[i]), float(vector[i + half])
        out[i] = x * math.cos(angle) - y * math.sin(angle)
        out[i + half] = y * math.cos(angle) + x * math.sin(angle)
    return out


def frame_scores(keys, frames, queries, theta=None):
    """Product of mean query and mean key, over all query heads, of lists of tokens per frame. theta: turned back."""
    group, n_cached = len(queries) // len(keys), max((max(f) for f in frames if f), default=-1) + 1

    def plain(vector, position):
        return vector if theta is None else turned(vector, -position, theta)

    scores, macs = {}, 0
    for number, tokens in enumerate(frames):
        total = 0.0
        for q, rows in enumerate(queries):
            key = mean(plain(keys[q // group][t], t) for t in tokens)
            query = mean(plain(row, n_cached + i) for i, row in enumerate(rows))
            total += dot(query, key)
            macs += len(key)
        scores[number] = total
    return scores, macs


def quest(keys, queries, page, k):
    """Kept tokens per KV head by the upper bound of each page and query row."""
    group, n = len(queries) // len(keys), len(keys[0])
    kept, scored, macs = [set() for _ in keys], 0, 0
    for q, rows in enumerate(queries):
        head = q // group
        for row in rows:
            bounds = {}
            for start in range(0, n, page):
                tokens = range(start, min(start + page, n))
                bound = 0.0
                for i, x in enumerate(row):
                    column = [float(keys[head][t][i]) for t in tokens]
                    bound += max(float(x) * min(column), float(x) * max(column))
                    macs += 2
                bounds[start // page] = bound
                scored += 1
            for p in best(bounds, k):
                kept[head] |= set(range(p * page, min((p + 1) * page, n)))
    return kept, scored, macs


def infinigen(keys, queries, basis, alpha, row_cap, union_cap):
    """Kept tokens per KV head; basis: per KV head, columns of length D."""
    group, n_heads, dim = len(queries) // len(keys), len(keys), len(keys[0][0])
    n, n_new = len(keys[0]), len(queries[0])
    macs = 0
    scores = {}
    for q in range(len(queries)):
        head = q // group
        partial_keys = [[dot(k, column) for column in basis[head]] for k in keys[head]]
        for row in range(n_new):
            partial = [dot(queries[q][row], column) for column in basis[head]]
            scores[q, row] = [dot(partial, k) / math.sqrt(dim) for k in partial_keys]
            macs += n * len(partial)
    kept = [set() for _ in range(n_heads)]
    height = [{} for _ in range(n_heads)]
    for row in range(n_new):
        counts = [sum(s >= max(scores[q, row]) - alpha for s in scores[q, row]) for q in range(len(queries))]
        m = min(max(1, int(sum(counts) / len(counts))), max(1, int(row_cap * n)))
        for q in range(len(queries)):
            head, line = q // group, scores[q, row]
            for t in best(dict(enumerate(line)), m):
                kept[head].add(t)
                height[head][t] = max(height[head].get(t, -math.inf), line[t] - max(line))
    cap = max(1, int(union_cap * n))
    return [set(best(h, cap)) if len(h) > cap else set(h) for h in height], len(scores) * n, macs


def streamingllm(n_cached, n_new, sinks, recent):
    """Tokens still there: evicted one by one, oldest past the sinks first."""
    window = list(range(n_cached))
    while len([t for t in window if t >= sinks]) + n_new > recent and len(window) > min(sinks, n_cached):
        if window[-1] < sinks:
            break
        window.remove(next(t for t in window if t >= sinks))
    return set(window)


def infllm_blocks(keys, queries, received, policy, theta):
    """Scores of the blocks that left the window. received: per token and query head, attention or 0."""
    group, n_cached, size = len(queries) // len(keys), len(keys[0]), policy.block_tokens
    n_blocks = max(0, (n_cached - policy.n_init - policy.n_local) // size)
    scores, macs = {}, 0
    for block in range(n_blocks):
        tokens = range(policy.n_init + block * size, policy.n_init + (block + 1) * size)
        seen = any(received[t][q] for t in tokens for q in range(len(queries)))
        total = 0.0
        for q, rows in enumerate(queries):
            chosen = best({t: received[t][q] for t in tokens}, policy.representatives) if seen else tokens
            key = mean(turned(keys[q // group][t], -t, theta) for t in chosen)
            query = mean(turned(r, policy.n_local - 1 - (n_cached + i), theta) for i, r in enumerate(rows))
            total += dot(query, key)
            macs += len(key)
        scores[block] = total
    return scores, macs


def local_attention(keys, queries, step_keys, start):
    """{(token, query head): probability received}, causal softmax over tokens from `start` and the step's own."""
    group, n_cached, dim = len(queries) // len(keys), len(keys[0]), len(queries[0][0])
    got = {}
    for q, rows in enumerate(queries):
        head = q // group
        for i, row in enumerate(rows):
            local = {t: keys[head][t] for t in range(start, n_cached)}
            local.update({n_cached + j: step_keys[head][j] for j in range(i + 1)})
            weights = {t: math.exp(dot(row, k) / math.sqrt(dim)) for t, k in local.items()}
            for t, w in weights.items():
                got[t, q] = got.get((t, q), 0.0) + w / sum(weights.values())
    return got


def flash_memory(features, n_centroids):
    """[(weight, centroid, frame that stands for it)] after all frames; joins the pair of least cost."""
    memory = []

    def distance2(a, b):
        return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))

    for number, feature in enumerate(features):
        point = [float(x) for x in feature]
        memory.append((1.0, point, number))
        if len(memory) <= n_centroids:
            continue
        costs = {}
        for j, (v, d, _) in enumerate(memory):
            for i, (w, c, _) in enumerate(memory[:j]):
                costs[i, j] = w * v / (w + v) * distance2(c, d)
        i, j = min(costs, key=costs.get)
        (w, c, a), (v, d, b) = memory[i], memory[j]
        joined = [(w * x + v * y) / (w + v) for x, y in zip(c, d, strict=True)]
        near, far = sorted((a, b), key=lambda f: distance2(features[f], joined))
        is_tie = distance2(features[far], joined) < 1.0001 * distance2(features[near], joined)
        stand_in = min(a, b) if is_tie else near
        memory = [m for k, m in enumerate(memory) if k not in (i, j)] + [(w + v, joined, stand_in)]
    return memory


def oaken_row(row, edges, levels=(32, 16, 32)):
    """One token's elements quantised and restored; an outer one's side is stored, a middle one's is its sign."""
    outer_low, inner_low, inner_high, outer_high = (float(e) for e in edges)
    shifted = []
    for x in map(float, row):
        if x < outer_low or x > outer_high:
            edge = outer_high if x > outer_high else outer_low
            shifted.append((0, x - edge, edge))
        elif x < inner_low or x > inner_high:
            shifted.append((1, x - (inner_high if x > inner_high else inner_low), None))
        else:
            shifted.append((2, x, 0.0))
    out = []
    for group, x, edge in shifted:
        mine = [y for g, y, _ in shifted if g == group]
        low, step = min(mine), (max(mine) - min(mine)) / (levels[group] - 1)
        y = low + (round((x - low) / step) * step if step > 0 else 0.0)
        if edge is None:
            edge = inner_high if y >= 0 else inner_low
        out.append(y + edge)
    return out
