"""Slow, evident twins of the algorithm: clustering, weighted cumulative sums, attention, number formats."""

from __future__ import annotations

import math
import struct
from fractions import Fraction

import numpy as np

# --- numbers -----------------------------------------------------------------------------------------


def bf16_bits(x):
    """Upper half of the float32, rounded to nearest, ties to even, by looking at the lower half."""
    bits = struct.unpack("<I", struct.pack("<f", x))[0]
    upper, lower = bits >> 16, bits & 0xFFFF
    if lower > 0x8000 or (lower == 0x8000 and upper % 2 == 1):
        upper += 1
    return upper


def bf16(x):
    return struct.unpack("<f", struct.pack("<I", bf16_bits(x) << 16))[0]


def hash_code(vector, planes):
    """Bit b is set where the sum of products is positive."""
    code = 0
    for b in range(planes.shape[1]):
        if sum(float(x) * float(p) for x, p in zip(vector, planes[:, b], strict=True)) > 0:
            code |= 1 << b
    return code


def hamming(a, b):
    return bin(int(a) ^ int(b)).count("1")


# --- clustering --------------------------------------------------------------------------------------


class Table:
    """One HC table as a list of clusters, each a dictionary."""

    def __init__(self, hash_bits, threshold, match="nearest", code="leader", freeze=True):
        self.hash_bits, self.threshold, self.match = hash_bits, threshold, match
        self.code_rule, self.freeze = code, freeze
        self.clusters, self.cluster_of_token, self.departed, self.comparisons = [], [], 0, 0

    def eligible(self):
        return [i for i, c in enumerate(self.clusters) if not (self.freeze and c["departure"] >= 0)]

    def add(self, code):
        chosen, best = None, self.threshold
        for i in self.eligible():
            self.comparisons += 1
            distance = hamming(code, self.clusters[i]["code"])
            if distance < best:
                chosen, best = i, distance
                if self.match == "first":
                    break
        if chosen is None:
            chosen = len(self.clusters)
            self.clusters.append({"code": int(code), "members": [], "codes": [], "departure": -1})
        self.clusters[chosen]["members"].append(len(self.cluster_of_token))
        self.clusters[chosen]["codes"].append(int(code))
        self.cluster_of_token.append(chosen)

    def end_of_step(self):
        if self.code_rule != "majority":
            return
        for cluster in self.clusters:
            n = len(cluster["codes"])
            for b in range(self.hash_bits):
                ones = sum(code >> b & 1 for code in cluster["codes"])
                if 2 * ones != n:
                    cluster["code"] = cluster["code"] & ~(1 << b) | (int(2 * ones > n) << b)

    def resident(self):
        return [i for i, c in enumerate(self.clusters) if c["departure"] < 0]

    def resident_tokens(self):
        return sum(len(self.clusters[i]["members"]) for i in self.resident())


def cluster_stream(tables, codes, step_lengths, capacity):
    """Cluster codes (tables, n) step by step; `capacity` counts tokens over all tables, None = no limit."""
    start = 0
    for length in step_lengths:
        for table, row in zip(tables, codes, strict=True):
            for code in row[start : start + length]:
                table.add(code)
            table.end_of_step()
        while capacity is not None and sum(t.resident_tokens() for t in tables) > capacity:
            _, t, i = min(
                (table.clusters[i]["members"][-1], t, i) for t, table in enumerate(tables) for i in table.resident()
            )
            tables[t].clusters[i]["departure"] = tables[t].departed
            tables[t].departed += 1
        start += length


# --- weighted cumulative sums ------------------------------------------------------------------------


def wicsum_exact(row, counts, ratio):
    """Selected indices, with rational arithmetic: no rounding anywhere."""
    order = sorted(range(len(row)), key=lambda j: (-row[j], j))
    weights = [Fraction(float(s)) * int(c) for s, c in zip(row, counts, strict=True)]
    if ratio >= 1:
        return set(order)
    if sum(weights) <= 0:
        return set(order[:1])
    limit, running, chosen = Fraction(ratio) * sum(weights), Fraction(0), set()
    for j in order:
        chosen.add(j)
        running += weights[j]
        if running > limit:
            break
    return chosen


def wicsum_bucketed(row, counts, config):
    """The hardware's order: one scan of the row per bucket. Returns (selected, buckets, elements)."""
    low, high = float(min(row)), float(max(row))
    held = [float(s) for s in row]
    if config.score_bits < 16 and high > low:
        levels = 2**config.score_bits - 1
        held = [low + round((s - low) * (levels / (high - low))) * (high - low) / levels for s in held]
    total = 0.0
    for s, c in zip(held, counts, strict=True):
        total += s * int(c)
    if total <= 0 and config.ratio < 1:
        return {held.index(max(held))}, 0, 0
    limit = config.ratio * total if config.ratio < 1 else math.inf

    def bucket_of(j):
        if config.edges == "exponent":
            shift = 7 - config.mantissa_bits
            return min(config.buckets - 1, (bf16_bits(high) >> shift) - (bf16_bits(row[j]) >> shift))
        if high == low:
            return 0
        return max(0, min(config.buckets - 1, math.floor((high - held[j]) * (config.buckets / (high - low)))))

    chosen, running, elements, buckets = set(), 0.0, 0, 0
    exited = None
    for b in range(config.buckets):
        partial = 0.0
        buckets += 1
        for j in range(len(row)):
            elements += 1
            if bucket_of(j) == b:
                partial += held[j] * int(counts[j])
                if exited is None:
                    chosen.add(j)
            group_ends = (j + 1) % config.group_size == 0 or j + 1 == len(row)
            if config.exit == "group" and group_ends and running + partial > limit:
                return chosen, buckets, elements
        running += partial
        if running > limit and exited is None and config.exit != "group":
            exited = b
            if config.exit == "bucket":
                break
    return chosen, buckets, elements


# --- attention ---------------------------------------------------------------------------------------


def attention(queries, keys, values, attended, step_keys, step_values):
    """Row by row in float64: softmax over attended cached tokens and new tokens up to the row's own."""
    n_heads = keys.shape[0]
    group = queries.shape[0] // n_heads
    out = np.zeros(queries.shape)
    for q in range(queries.shape[0]):
        h = q // group
        for n in range(queries.shape[1]):
            tokens = [(keys[h, t], values[h, t]) for t in range(keys.shape[1]) if attended[h, t]]
            tokens += [(step_keys[h, m], step_values[h, m]) for m in range(n + 1)]
            logits = [float(queries[q, n].astype(float) @ k) / math.sqrt(len(k)) for k, _ in tokens]
            weights = [math.exp(x - max(logits)) for x in logits]
            out[q, n] = sum(w * v.astype(float) for w, (_, v) in zip(weights, tokens, strict=True)) / sum(weights)
    return out


def attention_mass(queries, keys, step_keys, attended):
    """(H,) mean over rows and query heads of the full softmax's mass on attended and new tokens."""
    n_heads = keys.shape[0]
    group = queries.shape[0] // n_heads
    masses = []
    for h in range(n_heads):
        shares = []
        for q in range(h * group, (h + 1) * group):
            for n in range(queries.shape[1]):
                both = np.concatenate([keys[h], step_keys[h, : n + 1]]).astype(float)
                weights = np.exp(both @ queries[q, n] / math.sqrt(keys.shape[2]))
                kept = np.concatenate([attended[h], np.ones(n + 1, dtype=bool)])
                shares.append(weights[kept].sum() / weights.sum())
        masses.append(np.mean(shares))
    return np.array(masses)


def topk(row, k):
    return set(sorted(range(len(row)), key=lambda j: (-row[j], j))[:k])
