"""Times of a sequence over many GPUs, derived from their bandwidths: nothing here is measured.

For each rank, forward and backward of one layer:

    tokens     11 n d H numbers to and from memory, over the share of its bandwidth that is reached
    sums       4 all-reduces of H m d float32 numbers or of H m (d + 1), each 2 (R − 1) / R of its
               bytes over the link, and 2 log₂ R steps that wait for the link
    ring       ring attention: keys and values of n / R tokens to the next rank, R − 1 times forward
               and R − 1 times backward, and their gradients R times
"""

import math
from dataclasses import dataclass

# Bytes of a token's number (bfloat16) and of a number of the sums (float32).
_TOKEN_BYTES, _SUM_BYTES = 2, 4


@dataclass(frozen=True)
class Link:
    """How GPUs are connected.

    bandwidth: bytes a second of one GPU in one direction.
    latency: seconds for one step of a collective.
    """

    name: str
    bandwidth: float
    latency: float


@dataclass(frozen=True)
class Layer:
    """One sequence in one layer of attention."""

    tokens: int = 2**20
    heads: int = 16
    features: int = 64
    landmarks: int = 64


@dataclass(frozen=True)
class Derived:
    """Seconds of one layer, forward and backward, over so many ranks."""

    link: str
    ranks: int
    tokens: float
    sums_latency: float
    sums_bytes: float
    ring_bytes: float


LINKS = (Link("NVLink", 450e9, 2e-6), Link("400 Gb/s", 50e9, 8e-6))
RANKS = (8, 64, 1024)
# Of an H100 SXM, and the share of it that a memory-bound kernel is taken to reach.
MEMORY_BANDWIDTH, REACHED = 3.35e12, 0.5


def derive(layer: Layer, link: Link, ranks: int) -> Derived:
    """The seconds of one layer over ``ranks`` GPUs with such a link."""
    width = layer.heads * layer.features
    own = layer.tokens / ranks
    sums = layer.heads * layer.landmarks * (2 * layer.features + 1) * _SUM_BYTES
    both = 2 * own * width * _TOKEN_BYTES
    return Derived(
        link=link.name,
        ranks=ranks,
        tokens=11 * own * width * _TOKEN_BYTES / (MEMORY_BANDWIDTH * REACHED),
        sums_latency=4 * 2 * math.log2(ranks) * link.latency,
        sums_bytes=2 * sums * 2 * (ranks - 1) / ranks / link.bandwidth,
        ring_bytes=both * (2 * (ranks - 1) + ranks) / link.bandwidth,
    )
