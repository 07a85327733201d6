"""How long a tile of ``implicit_gemm_hopper.cu`` should take for a layer: which of the many are worth a race.

A model of what binds, in clocks of a multiprocessor, with figures measured on an H100 (docs/design/0008):

- tensor cores: 2048 products a clock, of 2:4 weights 4096 with those of the zeros;
- shared memory: 128 bytes a clock, for both operands of every instruction (each 64 filters read all pixels of the tile
  again) and for what is copied there; where these two bind, power holds the clock at 0.85 of what it is else (the
  instruction alone reaches 783 to 815 of 949 dense TFLOP/s, and 1447 in 2:4 where the port would allow 1687);
- L2: 35 bytes a clock for what is copied; blocks of a cluster share their pixels;
- the first products wait for the first copy, which with whole lines is of all that the tile sees;
- a block alone cannot start a step more often than every 250 clocks;
- results leave at 0.17 clocks each and warpgroup, with a residual at 0.3, while no product of the block runs;
- results that are pooled leave at 0.075 by the instructions of a thread, in registers but for a quarter of them (from
  the times of an older form, which had twice the instructions, twice that follows); weights that stay in shared memory
  come once, and of lines that slide those that the tile before did not see. Blocks that share a multiprocessor begin at
  the same time and are taken to stay in step: all multiply, then all pool. Warpgroups that take turns do not; they were
  5 % faster, less than this says (docs/design/0016). Lines that do not slide are awaited where they have one stage;
- all tiles take turns on the multiprocessors, so that the last turn may be a waste;
- blocks that divide a tile's steps exchange their sums in each turn: 2 us, and 0.15 for each block and warpgroup.
  Four or eight of them must lie in one of the GPU's groups of multiprocessors, and the rest of each group stays idle:
  26 clusters of four and 13 of eight ran at once on 132, 32 and 16 did not; pairs all do;
- a bundle of groups has the steps of all its channels, and the zeros between groups are multiplied;
- weights that stay in registers are read once by each block, and neither the port nor L2 sees them again; the products
  of all taps of whole lines follow each other without a pause;
- what the layer must read and write, at 3 TB/s. Where this binds many tiles are equal, and the caller's order decides:
  breaking such ties by their clocks, too, kept no better tiles of those measured.

The ranking is what counts, not the times: tests/kernels/test_cuda_tile_prior.py has how far it is off.
"""

from __future__ import annotations

import math

from tamis.formats.steps import rows_bytes
from tamis.kernels.cuda.convolution import Convolution
from tamis.kernels.cuda.implicit_gemm import Tile
from tamis.kernels.cuda.pooled import PooledTile, Pooling, runs_of_tiles, tops
from tamis.kernels.cuda.specification import ceil_divide
from tamis.kernels.cuda.stationary import blocks_of

_CLOCKS_A_MICROSECOND = 1750.0
_PRODUCTS, _PORT_BYTES, _L2_BYTES = 2048.0, 128.0, 35.0
_MEMORY_BYTES = 3e6  # a microsecond
_UNDER_POWER = 0.85
_SHORTEST_STEP = 250.0
_LEAVE, _LEAVE_WITH_RESIDUAL = 0.17, 0.3
_LEAVE_POOLED = 0.075  # by the instructions of a thread
_COPY_AGAIN = 700.0  # clocks until what is copied into the only stage begins to come
_START_US, _FIRST_COPY = 4.0, 1500.0
_EXCHANGE_US, _EXCHANGE_US_EACH = 2.0, 0.15
_FIT_IN_CLUSTERS = 0.9  # of the multiprocessors, where more than two blocks must lie in one group of them
_CHANNELS, _PIXEL_BYTES = 64, 128  # of a step


def predicted_us(shape: Convolution, tile: Tile, multiprocessors: int, *, sparse: bool, residual: bool) -> float:
    """Microseconds of a launch in 16 bits, from a cold L2 cache."""
    blocks = tile.filters // 64
    steps = ceil_divide(shape.part(tile.filters).steps, tile.split)
    taps = shape.kernel[0] * shape.kernel[1]
    packed = rows_bytes(tile.filters, sparse=sparse)
    weights, operand = (0, 0) if tile.stationary else (packed, 4096 if sparse else 8192)
    pixels = tile.line_bytes / taps if tile.lines else tile.pixels * _PIXEL_BYTES
    operands = blocks * (tile.pixels * _PIXEL_BYTES + operand)
    step = _step_clocks(
        tile.filters * tile.pixels, operands, weights + pixels, weights + pixels / tile.cluster, sparse=sparse
    )  # fmt: skip
    leave = (_LEAVE_WITH_RESIDUAL if residual else _LEAVE) * 64 * tile.blocks * tile.pixels
    shortest = _SHORTEST_STEP / (taps if tile.stationary and tile.lines else 1)
    alone = steps * max(step, shortest) + leave
    # The blocks of a multiprocessor compute by turns, one while another one's results leave.
    together = max(tile.resident * steps * step, alone)
    turns = _turns(shape, tile, multiprocessors)
    first = _FIRST_COPY + (tile.line_bytes or tile.pixels * _PIXEL_BYTES) / _L2_BYTES
    if tile.stationary:
        first += tile.resident * steps * packed / _L2_BYTES
    clocks = first + turns * together
    seen = math.prod(min(1.0, size / stride) for size, stride in zip(shape.kernel, shape.strides, strict=True))
    image = shape.apart[2] if shape.apart else shape.height * shape.width * shape.channels  # elements of one
    results = 2 * shape.pixels * shape.filters
    memory = (2 * shape.batch * image * seen + results * (2 if residual else 1)) / _MEMORY_BYTES
    exchange = turns * (_EXCHANGE_US + _EXCHANGE_US_EACH * tile.split * tile.groups) if tile.split > 1 else 0.0
    return _START_US + exchange + max(clocks / _CLOCKS_A_MICROSECOND, memory)


def predicted_pooled_us(
    shape: Convolution, pooling: Pooling, tile: PooledTile, multiprocessors: int, *, sparse: bool
) -> float:
    """Microseconds of a launch in 16 bits that pools what it computes, from a cold L2 cache."""
    blocks, taps = tile.filters // 64, shape.kernel[0] * shape.kernel[1]
    packed = rows_bytes(tile.filters, sparse=sparse)
    copied = tile.copied_bytes / taps + (0 if tile.weights_stay else packed)
    products = tile.lines if tile.sliding else 1  # each reads the weights of the step
    operands = blocks * (tile.computed * _PIXEL_BYTES + products * (4096 if sparse else 8192))
    step = _step_clocks(tile.filters * tile.computed, operands, copied, copied, sparse=sparse)
    leave = _LEAVE_POOLED * 64 * tile.blocks * tile.computed
    multiply = shape.steps * step
    if tile.by_turns:
        together = max(tile.runs * multiply, shape.steps * max(step, _SHORTEST_STEP) + leave)
    else:
        if tile.line_stages == 1:
            leave = max(leave, _COPY_AGAIN + tile.line_bytes / _L2_BYTES)
        together = max(tile.resident * multiply, shape.steps * _SHORTEST_STEP) + leave
    rows, runs = ceil_divide(shape.filters, tile.filters), runs_of_tiles(shape, pooling, tile, multiprocessors)
    # A run that begins within an image computes the tile above once more.
    longest = ceil_divide(shape.batch * tops(tile, pooling), runs) + int(pooling.size > 2 and shape.batch % runs > 0)
    turns = ceil_divide(rows * runs, multiprocessors * tile.resident * tile.runs) * longest
    first = _FIRST_COPY + tile.runs * tile.line_bytes / _L2_BYTES
    if tile.weights_stay:
        first += tile.resident * shape.steps * packed / _L2_BYTES
    image = shape.apart[2] if shape.apart else shape.height * shape.width * shape.channels
    results = shape.batch * pooling.output[0] * pooling.output[1] * shape.filters
    memory = 2 * (shape.batch * image + results) / _MEMORY_BYTES
    return _START_US + max((first + turns * together) / _CLOCKS_A_MICROSECOND, memory)


def _step_clocks(results: int, operands: float, copied: float, from_l2: float, *, sparse: bool) -> float:
    """Clocks of a tile's step: tensor cores and port under power, or what comes from L2, in bytes."""
    tensor = results * _CHANNELS / _PRODUCTS / (2 if sparse else 1)
    return max(max(tensor, (operands + copied) / _PORT_BYTES) / _UNDER_POWER, from_l2 / _L2_BYTES)


def _turns(shape: Convolution, tile: Tile, multiprocessors: int) -> int:
    """How many tiles follow each other in a block of the busiest multiprocessor.

    As many clusters are launched as there are multiprocessors for, and stay; those that do not fit come when the others
    have done all of their tiles.
    """
    tiles, places = tile.count(shape), multiprocessors * tile.resident
    if tile.stationary:
        return ceil_divide(tiles, blocks_of(shape, tile, multiprocessors))
    launched = min(tiles, max(places // tile.together, 1))
    fitting = places if tile.together <= 2 else int(places * _FIT_IN_CLUSTERS)
    return ceil_divide(launched, max(fitting // tile.together, 1)) * ceil_divide(tiles, launched)
