"""Hash codes of keys: signs of projections on random hyperplanes, and the distance between codes.

Knows vectors and bits; which vector is hashed (the concatenated key of a layer or one head's) is the
policy's choice. V-Rex (HPCA 2026, arXiv 2512.12284), hash-bit generation and Fig. 7.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from resv._arrays import Array, in_float32, is_tensor, namespace

MAX_HASH_BITS = 64


def hyperplanes(dim: int, hash_bits: int, seed: int) -> NDArray[np.float32]:
    """Normals of `hash_bits` Gaussian hyperplanes, (dim, B) float32; equal seeds give equal planes.

    The paper fixes no distribution; one Gaussian matrix per model is assumed.
    """
    if dim < 1:
        raise ValueError(f"dim is {dim}; allowed: 1 or more")
    if not 1 <= hash_bits <= MAX_HASH_BITS:
        raise ValueError(f"hash_bits is {hash_bits}; allowed: 1 to {MAX_HASH_BITS}")
    return np.random.default_rng(seed).standard_normal((dim, hash_bits), dtype=np.float32)


def hash_codes(x: Array, planes: NDArray[np.float32]) -> Array:
    """Codes of `x` (..., dim) on `planes` (dim, B), shape (...,) uint64.

    Bit b is 1 where the projection on plane b is positive; a projection of 0 gives 0.
    """
    dim, hash_bits = planes.shape
    if x.shape[-1] != dim:
        raise ValueError(f"x has {x.shape[-1]} elements per vector, the hyperplanes {dim}")
    x = in_float32(x)
    if not is_tensor(x):
        return _pack((x.reshape(-1, dim) @ planes) > 0).reshape(x.shape[:-1])
    torch = namespace(x)
    bits = (x @ torch.from_numpy(planes).to(x.device)) > 0
    weights = torch.ones((), dtype=torch.int64, device=x.device) << torch.arange(hash_bits, device=x.device)
    return (bits * weights).sum(-1).view(torch.uint64)


def _pack(bits: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """(n, B) bool -> (n,) uint64, bit b of the code is column b."""
    packed = np.zeros((len(bits), 8), dtype=np.uint8)
    used = -(-bits.shape[1] // 8)
    packed[:, :used] = np.packbits(bits, axis=1, bitorder="little")
    return packed.view("<u8")[:, 0].astype(np.uint64)


def hamming_distance(a: Array, b: Array) -> Array:
    """Number of differing bits of two codes, elementwise with broadcasting; uint8, int64 for tensors."""
    if not is_tensor(a):
        return np.bitwise_count(np.bitwise_xor(a, b))
    int64 = namespace(a).int64
    x = a.view(int64) ^ b.view(int64)
    # Parallel bit counting: sums of 2, 4 and 8 bits, then all eight bytes by one multiplication.
    x = x - ((x >> 1) & 0x5555555555555555)
    x = (x & 0x3333333333333333) + ((x >> 2) & 0x3333333333333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F0F0F0F0F
    return (x * 0x0101010101010101) >> 56


def cosine_hamming_correlation(
    x: NDArray[np.float32], hash_bits: int, *, n_pairs: int = 10_000, seed: int = 0
) -> float:
    """Pearson correlation of cosine and Hamming distance over random pairs of rows of `x` (T, dim).

    Negative, since like vectors share bits; V-Rex Fig. 7 shows about 0.8 in magnitude at 32 bits. Planes
    are those of `seed`; pairs are drawn from it too, with replacement, never a row with itself.

    Raises
    ------
    ValueError
        fewer than two rows, or all pairs equally far apart.
    """
    if len(x) < 2:
        raise ValueError(f"a pair needs two vectors, got {len(x)}")
    rng = np.random.default_rng((seed, n_pairs))
    first = rng.integers(0, len(x), n_pairs)
    second = (first + rng.integers(1, len(x), n_pairs)) % len(x)
    a, b = x[first], x[second]
    planes = hyperplanes(x.shape[1], hash_bits, seed)
    distance = hamming_distance(hash_codes(a, planes), hash_codes(b, planes)).astype(np.float64)
    cosine = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    if np.ptp(distance) == 0.0 or np.ptp(cosine) == 0.0:
        raise ValueError("all sampled pairs are equally far apart: no correlation is defined")
    return float(np.corrcoef(cosine, distance)[0, 1])
