"""Representative keys: the mean key of each cluster, kept as running sums and read as bf16.

Knows keys and cluster numbers, not how the clusters were found. Sums stay on the keys' device.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from resv._arrays import Array, in_float32, is_tensor, like, round_bf16


class Representatives:
    """Sums of member keys per table and cluster: width H·D for a shared table, D for one table per head.

    Means are float32 sums divided by the counts and rounded to bf16 on use, which differs from the update
    mean += (key - mean) / count by rounding only.
    """

    def __init__(self, n_tables: int) -> None:
        self._n_tables = n_tables
        self._sums: Array = None

    def append(self, keys: Array, cluster_of_token: NDArray[np.int32], n_clusters: int) -> None:
        """Add token-major `keys` (n, tables, width) to their clusters (tables, n).

        n_clusters : clusters of the largest table, the new ones included
        """
        keys = in_float32(keys)
        self._reserve(n_clusters, keys)
        if not is_tensor(keys):
            from resv._cluster_kernels import add_members

            add_members(self._sums, keys, cluster_of_token)
            return
        for t in range(self._n_tables):
            clusters = like(cluster_of_token[t].astype(np.int64), keys)
            self._sums[t].index_add_(0, clusters, keys[:, t])

    def _reserve(self, n_clusters: int, keys: Array) -> None:
        old = 0 if self._sums is None else self._sums.shape[1]
        if n_clusters <= old:
            return
        shape = (self._n_tables, max(n_clusters, 2 * old), keys.shape[2])
        if is_tensor(keys):
            grown = keys.new_zeros(shape)
        else:
            grown = np.zeros(shape, dtype=np.float32)
        if old:
            grown[:, :old] = self._sums
        self._sums = grown

    def means(self, table: int, clusters: NDArray[np.int32], token_counts: NDArray[np.int32], elements: slice) -> Array:
        """Mean keys of `clusters` (K,) with `token_counts` (K,), of the given elements of the key.

        Returns (K, len(elements)) float32 of bf16 values.
        """
        sums = self._sums[table][:, elements]
        counts = like(token_counts.astype(np.float32), sums)[:, None]
        return round_bf16(sums[like(clusters.astype(np.int64), sums)] / counts)
