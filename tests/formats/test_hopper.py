"""Weights packed for Hopper's tensor cores: single places by the text of the instruction set."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from tamis.formats import TWO_FOUR, magnitude_mask
from tamis.formats.hopper import pack_hopper, pack_stationary


def test_a_row_lies_where_the_instruction_looks_for_it():
    """Row 8 g + r, bytes 16 h to 16 h + 15 of a part: the core matrix at 256 g + 128 h, row r of it."""
    matrix = np.arange(64 * 64, dtype=np.uint16).reshape(64, 1, 64).view(np.float16)
    data = pack_hopper(matrix, 1, sparse=False).data[0, 0].view(np.uint16)
    for row, channel in [(0, 0), (0, 8), (1, 0), (8, 0), (9, 17), (63, 63)]:
        part, half, element = channel // 16, channel % 16 // 8, channel % 8
        at = part * 2048 + row // 8 * 256 + half * 128 + row % 8 * 16 + element * 2
        assert data[at // 2] == row * 64 + channel


def read_by_instructions(step: np.ndarray, dtype: type, *, sparse: bool) -> np.ndarray:
    """[64, 128]: what the instructions of a step of 64 filters see of it in 8 bits, one element after the other."""
    matrix = np.zeros((64, 128), dtype)
    parts, places = (2, step[4096:].view(np.uint32)) if sparse else (4, None)
    for part in range(parts):
        for row in range(64):
            for byte in range(32):
                at = part * 2048 + row // 8 * 256 + byte // 16 * 128 + row % 8 * 16 + byte % 16
                value = step[at : at + 1].view(dtype)[0]
                if places is None:
                    matrix[row, 32 * part + byte] = value
                    continue
                group = byte // 2  # of four channels: a nibble, eight of which are in a lane's word
                warp, high, quad = row // 16, row % 16 // 8, row % 8
                lane = 4 * quad + 2 * (group // 8) + high
                nibble = int(places[2 * (32 * warp + lane) + part]) >> (4 * (group % 8)) & 15
                matrix[row, 64 * part + 4 * group + (nibble >> 2 if byte % 2 else nibble & 3)] = value
    return matrix


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "2:4"])
@pytest.mark.parametrize("dtype", [np.int8, ml_dtypes.float8_e4m3fn], ids=["int8", "float8_e4m3"])
def test_instructions_of_8_bits_find_every_value(dtype: type, sparse: bool) -> None:
    matrix = (np.random.default_rng(0).standard_normal((64, 1, 128)) * 40).astype(dtype)
    if sparse:
        matrix = np.where(magnitude_mask(matrix.astype(np.float32), TWO_FOUR), matrix, dtype(0))
    step = pack_hopper(matrix, 1, sparse=sparse).data[0, 0]
    assert len(step) == (4096 + 1024 if sparse else 8192)
    np.testing.assert_array_equal(
        read_by_instructions(step, dtype, sparse=sparse).view(np.uint8), matrix[:, 0].view(np.uint8)
    )


def held_by_threads(step: np.ndarray, dtype: type, *, sparse: bool) -> np.ndarray:
    """[64, values]: what a warpgroup holds of operand A of a step, as the text of the instruction set has it.

    Register ``r`` of thread ``t``: row ``16 (t / 32) + t % 32 / 4``, 8 further down if ``r`` is odd; 4 bytes from
    ``4 (t % 4)`` on, 16 further if ``r`` is above 1.
    """
    parts, size = (2 if sparse else 4), np.dtype(dtype).itemsize
    operand = np.zeros((64, parts * 32), np.uint8)
    for thread in range(128):
        warp, lane = divmod(thread, 32)
        for part in range(parts):
            for register in range(4):
                row = 16 * warp + lane // 4 + 8 * (register % 2)
                byte = 32 * part + 4 * (lane % 4) + 16 * (register // 2)
                at = (warp * parts + part) * 512 + lane * 16 + register * 4
                operand[row, byte : byte + 4] = step[at : at + 4]
    return operand.view(dtype).reshape(64, parts * 32 // size)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "2:4"])
@pytest.mark.parametrize("dtype", [np.float16, np.int8], ids=["float16", "int8"])
def test_threads_hold_the_rows_that_the_instruction_expects(dtype: type, sparse: bool) -> None:
    """And what they hold is what the other form has in shared memory, with the same places behind it."""
    channels = 128 // np.dtype(dtype).itemsize
    matrix = (np.random.default_rng(1).standard_normal((64, 1, channels)) * 40).astype(dtype)
    if sparse:
        matrix = np.where(magnitude_mask(matrix.astype(np.float32), TWO_FOUR), matrix, dtype(0))
    step, other = (pack(matrix, 1, sparse=sparse).data[0, 0] for pack in (pack_stationary, pack_hopper))
    held = held_by_threads(step, dtype, sparse=sparse)
    assert len(step) == len(other)
    np.testing.assert_array_equal(step[held.nbytes :], other[held.nbytes :])
    if not sparse:
        np.testing.assert_array_equal(held, matrix[:, 0])
        return
    for row in range(64):  # core matrices: 8 rows of 16 bytes
        for byte in range(64):
            at = byte // 32 * 2048 + row // 8 * 256 + byte % 32 // 16 * 128 + row % 8 * 16 + byte % 16
            assert held.view(np.uint8)[row, byte] == other[at]
