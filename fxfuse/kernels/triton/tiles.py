"""The tiles of the kernels that stream weights past few rows, and which of them a launch takes.

Block sizes follow the bandwidth-delay product (about 23 KB in flight per SM on H200); they are computed, not measured.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tile:
    """How one program of a kernel is shaped: ``block_m`` padded rows, ``block_n`` weight rows, ``block_k`` a step."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Tiles:
    """The tiles of one dtype size and row count: for weights with many rows, with few, and read element by element."""

    wide: Tile
    narrow: Tile
    unaligned: Tile

    def choose(self, weight_rows: int, aligned: bool, sm_count: int) -> Tile:
        """A weight with few rows takes the narrow tile, one that cannot be read 16 bytes at a time the unaligned one.

        There each element has its own address and mask, and the other tiles would spill registers.
        """
        if not aligned:
            return self.unaligned
        return self.narrow if -(-weight_rows // self.wide.block_n) < 2 * sm_count else self.wide


MAX_ROWS = 64
# Everything that is shipped: (item size, padded rows) -> tiles. From 32 rows on the wide tiles have the 64 weight rows
# that one of Hopper's warpgroup instructions takes.
CONFIGS: dict[tuple[int, int], Tiles] = {
    (2, 1): Tiles(Tile(1, 16, 256, 8, 3), Tile(1, 4, 512, 4, 3), Tile(1, 4, 512, 4, 3)),
    (2, 16): Tiles(Tile(16, 32, 128, 4, 4), Tile(16, 16, 128, 4, 4), Tile(16, 16, 64, 4, 4)),
    (2, 32): Tiles(Tile(32, 64, 32, 4, 4), Tile(32, 32, 32, 4, 4), Tile(32, 16, 32, 4, 3)),
    (2, 64): Tiles(Tile(64, 64, 32, 4, 4), Tile(64, 32, 32, 4, 4), Tile(64, 16, 32, 4, 3)),
    (4, 1): Tiles(Tile(1, 16, 128, 8, 3), Tile(1, 4, 256, 4, 3), Tile(1, 4, 256, 4, 3)),
    (4, 16): Tiles(Tile(16, 32, 32, 8, 4), Tile(16, 16, 16, 4, 6), Tile(16, 16, 16, 4, 4)),
    (4, 32): Tiles(Tile(32, 32, 16, 8, 4), Tile(32, 16, 16, 4, 4), Tile(32, 16, 16, 4, 4)),
    (4, 64): Tiles(Tile(64, 16, 16, 4, 4), Tile(64, 16, 16, 4, 4), Tile(64, 16, 16, 4, 4)),
}


def tiles_for(rows: int | torch.SymInt, dtype: torch.dtype) -> Tiles:
    """The tiles for so many rows. Where they are symbolic, each comparison is a guard of the graph."""
    for padded in (1, 16, 32):
        if rows == 1 if padded == 1 else rows <= padded:
            return CONFIGS[dtype.itemsize, padded]
    return CONFIGS[dtype.itemsize, MAX_ROWS]


def launch_meta(tile: Tile) -> dict[str, int]:
    """The tile as the kernels' keyword arguments."""
    return {
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "BLOCK_K": tile.block_k,
        "STAGES": tile.num_stages,
        "num_warps": tile.num_warps,
    }
