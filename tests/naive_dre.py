"""Slow, evident twins of the DRE units: clocked, element by element, one rescan per bucket."""

from __future__ import annotations

import math
import struct
from collections import OrderedDict
from collections.abc import Iterator

import numpy as np

# --- HCU ---------------------------------------------------------------------------------------------


class Best:
    """The winner one core holds for one token."""

    def __init__(self, threshold, match):
        self.match, self.threshold = match, threshold
        self.distance, self.index = threshold, None

    @property
    def matched_first(self):
        return self.match == "first" and self.index is not None

    @property
    def bound(self):
        return self.threshold if self.match == "first" else min(self.threshold, self.distance)

    def offer(self, distance, index):
        if not self.matched_first and distance < self.distance:
            self.distance, self.index = distance, index


def bits(code, hash_bits):
    return [int(code) >> b & 1 for b in range(hash_bits)]


def compare(token, clusters, best, config, counts) -> Iterator[None]:
    """Yield once per clock while the lanes work: `clusters` is [(index, bits)], h of them at once."""
    width = config.bits_per_cycle
    for at in range(0, len(clusters), config.xor_accumulators):
        if best.matched_first:
            return
        bound = best.bound
        lanes = [{"index": i, "bits": b, "distance": 0, "at": 0} for i, b in clusters[at:][: config.xor_accumulators]]
        running = list(lanes)
        while running:
            for lane in running:
                chunk = slice(lane["at"], lane["at"] + width)
                lane["distance"] += sum(a != b for a, b in zip(token[chunk], lane["bits"][chunk], strict=True))
                lane["at"] += width
                counts["chunks_examined"] += 1
            running = [
                lane
                for lane in running
                if lane["at"] < len(token) and not (config.early_exit and lane["distance"] >= bound)
            ]
            counts["compare_cycles"] += 1
            yield
        for lane in lanes:
            if lane["at"] >= len(token):  # an unfinished lane has lost
                best.offer(lane["distance"], lane["index"])


def table_pass(tokens, clusters, bests, config, n_bytes, counts):
    """Clock one core through its tiles; the loader fills the other buffer meanwhile."""
    per_tile = config.tile_bytes // 2 // n_bytes
    tiles = [clusters[at : at + per_tile] for at in range(0, len(clusters), per_tile)]
    counts["tile_bytes_read"] += len(clusters) * n_bytes
    clock = 0
    loading = len(tiles[0]) * n_bytes if tiles else 0
    while loading > 0:
        loading -= config.table_bytes_per_cycle
        clock += 1
    for t, tile in enumerate(tiles):
        loading = len(tiles[t + 1]) * n_bytes if t + 1 < len(tiles) else 0
        work = (
            None for token, best in zip(tokens, bests, strict=True) for _ in compare(token, tile, best, config, counts)
        )
        busy = True
        while True:
            busy = busy and next(work, "done") is None
            if not busy and loading <= 0:
                break
            loading -= config.table_bytes_per_cycle
            clock += 1
    return clock


def hcu(config, hash_bits, threshold, match, new_codes, cluster_codes, n_cores=1):
    n_bytes = math.ceil(hash_bits / 8)
    counts = {"compare_cycles": 0, "chunks_examined": 0, "tile_bytes_read": 0}
    clusters = [(i, bits(code, hash_bits)) for i, code in enumerate(cluster_codes)]
    founded, assignment, clock, pairs = [], [], 0, 0
    tokens = [bits(code, hash_bits) for code in new_codes]
    per_batch = config.current_bytes // n_bytes
    for at in range(0, len(tokens), per_batch):
        batch = tokens[at : at + per_batch]
        bests = [[Best(threshold, match) for _ in batch] for _ in range(n_cores)]
        clock += max(
            table_pass(batch, clusters[core::n_cores], bests[core], config, n_bytes, counts) for core in range(n_cores)
        )
        for t, token in enumerate(batch):
            pairs += len(clusters) + len(founded)
            clock += max(
                sum(
                    1
                    for _ in compare(
                        token, [f for f in founded if f[0] % n_cores == core], bests[core][t], config, counts
                    )
                )
                for core in range(n_cores)
            )
            clock += math.ceil(math.log2(n_cores)) + 1 + 2
            matches = [(b[t].distance, b[t].index) for b in bests if b[t].index is not None]
            if not matches:
                index = len(clusters) + len(founded)
                founded.append((index, token))
            elif match == "first":
                index = min(index for _, index in matches)
            else:
                index = min(matches)[1]
            assignment.append(index)
    n_chunks = math.ceil(hash_bits / config.bits_per_cycle)
    return {
        **counts,
        "cycles": clock,
        "chunks_skipped": pairs * n_chunks - counts["chunks_examined"],
        "updates": len(tokens),
        "founded": len(founded),
        "assignment": assignment,
    }


# --- WTU ---------------------------------------------------------------------------------------------


def held_score(score, low, high, score_bits):
    if score_bits >= 16 or low == high:
        return score
    levels = 2**score_bits - 1
    return low + round((score - low) * (levels / (high - low))) * (high - low) / levels


def exponent_key(score, mantissa_bits):
    return struct.unpack("<I", struct.pack("<f", abs(score)))[0] >> 16 >> (7 - mantissa_bits)


def bucket_of(score, value, low, high, wicsum):
    if wicsum.edges == "exponent":
        distance = exponent_key(high, wicsum.mantissa_bits) - exponent_key(score, wicsum.mantissa_bits)
    elif low == high:
        distance = 0
    else:
        distance = max(0, math.floor((high - value) * (wicsum.buckets / (high - low))))
    return min(wicsum.buckets - 1, distance)


class Lanes:
    """One unit scanning one row: every pass reads groups of W, from memory or, if too long, over the bus."""

    def __init__(self, config, wicsum, n):
        self.config, self.wicsum, self.n = config, wicsum, n
        self.clock = self.elements = self.bytes = 0
        groups_held = (
            min(config.score_bytes * 8 // wicsum.score_bits, config.count_bytes * 8 // config.count_bits)
            // config.lanes
        )
        self.spilled = n > groups_held * config.lanes
        if self.spilled:
            self.bytes += math.ceil(n * wicsum.score_bits / 8)  # written to device memory as it arrives

    def groups(self):
        """Yield index ranges; a pass may be left early, and costs the slower of lanes and bus."""
        start, read = self.clock, 0
        try:
            for at in range(0, self.n, self.config.lanes):
                group = range(at, min(self.n, at + self.config.lanes))
                read += len(group)
                self.clock += 1
                yield group
        finally:
            if self.spilled:
                n_bytes = math.ceil(read * (self.wicsum.score_bits + self.config.count_bits) / 8)
                self.bytes += n_bytes
                arrived = 0
                while arrived * self.config.spill_bytes_per_cycle < n_bytes:
                    arrived += 1
                self.clock = max(self.clock, start + arrived)


def wtu_row(config, wicsum, row, counts):
    """One row: dict of what it cost and the set of selected clusters."""
    row, counts = [float(s) for s in row], [int(c) for c in counts]
    lanes = Lanes(config, wicsum, len(row))
    tree = math.ceil(math.log2(config.lanes)) + 2
    low, high = min(row), max(row)
    value = [held_score(s, low, high, wicsum.score_bits) for s in row]
    total = 0.0
    for group in lanes.groups():
        for i in group:
            total += value[i] * counts[i]
    lanes.clock += tree
    result = {"buckets": 0, "prefix": 1}
    if not total > 0 and wicsum.ratio < 1:
        selected = {value.index(max(value))}
        return {**result, "lanes": lanes, "selected": selected}
    threshold = wicsum.ratio * total if wicsum.ratio < 1 else math.inf
    running, selected, exited = 0.0, set(), False
    result["prefix"] = len(row)
    for b in range(wicsum.buckets):
        if exited and wicsum.exit != "none":
            break
        result["buckets"] += 1
        partial, kept = 0.0, []
        members = [i for i in range(len(row)) if bucket_of(row[i], value[i], low, high, wicsum) == b]
        inside = False
        scan = lanes.groups()
        for group in scan:
            lanes.elements += len(group)
            for i in group:
                if bucket_of(row[i], value[i], low, high, wicsum) == b:
                    partial += value[i] * counts[i]
                    kept.append(i)
            if wicsum.exit == "group" and running + partial > threshold:
                inside = True
                scan.close()
                break
        lanes.clock += tree if inside else 1
        if exited:
            continue
        exited = inside or running + partial > threshold
        if exited:
            result["prefix"] = len(selected) + prefix_of(members, value, counts, running, threshold)
        selected.update(kept)
        running += partial
    return {**result, "lanes": lanes, "selected": selected}


def prefix_of(members, value, counts, running, threshold):
    ranked = sorted(members, key=lambda i: (-value[i], i))
    for taken, i in enumerate(ranked, start=1):
        running += value[i] * counts[i]
        if running > threshold:
            return taken
    return len(ranked)


def wtu(config, wicsum, scores, counts):
    rows = [wtu_row(config, wicsum, row, counts) for row in scores]
    union = set().union(*(row["selected"] for row in rows))
    words = sum(len(range(0, scores.shape[1], 64)) for _ in rows)
    return {
        "row_cycles": [row["lanes"].clock for row in rows],
        "union_words": words,
        "buckets_visited": [row["buckets"] for row in rows],
        "elements_visited": sum(row["lanes"].elements for row in rows),
        "spills": sum(row["lanes"].spilled for row in rows),
        "spill_bytes": sum(row["lanes"].bytes for row in rows),
        "selected": [i in union for i in range(scores.shape[1])],
        "row_selected": [len(row["selected"]) for row in rows],
        "overshoot": [len(row["selected"]) - row["prefix"] for row in rows],
    }


# --- KVMU --------------------------------------------------------------------------------------------


def tier_position(selection, head, by_cluster):
    """Position of each token of one head's region on the tier: {token: position}."""
    if not by_cluster:
        return {t: t for t in range(selection.n_cached)}
    table = selection.tables[head % len(selection.tables)]
    gone = sorted((d, c) for c, d in enumerate(table.departure) if d >= 0)
    tokens = [t for _, c in gone for t in np.flatnonzero(table.cluster_of_token == c)]
    return {int(t): position for position, t in enumerate(tokens)}


def sector_runs(positions, row_bytes, sector_bytes):
    """Sizes of the runs of consecutive sectors that cover some tokens of one region."""
    sectors = sorted({b // sector_bytes for p in positions for b in range(p * row_bytes, (p + 1) * row_bytes)})
    runs = []
    for previous, sector in zip([None, *sectors], sectors, strict=False):
        if previous is not None and sector == previous + 1:
            runs[-1] += sector_bytes
        else:
            runs.append(sector_bytes)
    return runs


class Lru:
    """A region of `capacity` tokens. What a step uses is looked up first, then touched in order."""

    def __init__(self, capacity):
        self.capacity, self.held = capacity, OrderedDict()

    def step(self, used):
        """`used` is [(key, tokens)]; returns the keys that were held before the step."""
        hits = {key for key, _ in used if key in self.held}
        for key, tokens in used:
            self.held.pop(key, None)
            self.held[key] = tokens
        while sum(self.held.values()) > self.capacity:
            self.held.popitem(last=False)
        return hits
