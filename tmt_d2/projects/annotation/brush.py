"""Run lengths of Label Studio's brush.

The format is rle-pack of @thi.ng/umbrella, as in ``label_studio_sdk.converter.brush``: a stream of bits. Its header has
32 bits for the number of values, 5 for the bits of a value - 1, and four times 4 for the bits of a length - 1. A block
has 1 for a run of one value or 0 for different values, 2 for which of the four, the length - 1, and the value or
values. The values are red, green, blue and alpha of each pixel, row by row. The mask is where alpha is not 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

HEADER_BITS, VALUE_BITS, CHANNELS = 53, 8, 4
LENGTH_BITS = (3, 4, 8, 16)


def encode_brush(mask: np.ndarray) -> list[int]:
    """Return the bytes of a mask: (H, W) bool, with at least one pixel."""
    values = mask.ravel()
    starts = np.flatnonzero(np.append(True, values[1:] != values[:-1]))
    lengths = np.diff(np.append(starts, len(values))) * CHANNELS
    longest = 2 ** LENGTH_BITS[-1]
    parts = -(-lengths // longest)  # a longer run is split
    runs = np.full(parts.sum(), longest)
    runs[parts.cumsum() - 1] = lengths - (parts - 1) * longest
    colors = np.repeat(np.where(values[starts], 255, 0), parts)
    kinds = np.searchsorted(2 ** np.array(LENGTH_BITS), runs)
    sizes = np.array(LENGTH_BITS)[kinds]
    blocks = (((4 | kinds) << sizes | (runs - 1)) << VALUE_BITS) | colors
    widths = 3 + sizes + VALUE_BITS
    places = np.arange(widths.max() - 1, -1, -1)
    bits = (blocks[:, None] >> places & 1).astype(np.uint8)[places < widths[:, None]]
    header = f"{values.size * CHANNELS:032b}{VALUE_BITS - 1:05b}" + "".join(f"{each - 1:04b}" for each in LENGTH_BITS)
    return np.packbits(np.concatenate([np.array(list(header), np.uint8), bits])).tolist()


def decode_brush(data: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """Return the mask in the bytes ``data``: ``size`` (H, W), bool.

    Raises:
        ValueError: they are truncated, or of a mask of another size.
    """
    bits, total = bytes(data), 8 * len(data)

    def read(place: int, count: int) -> int:
        if place + count > total:
            raise ValueError("the run lengths are truncated")
        end = (place + count + 7) // 8
        return int.from_bytes(bits[place // 8 : end], "big") >> (8 * end - place - count) & (1 << count) - 1

    number = read(0, 32)
    if number != size[0] * size[1] * CHANNELS:
        raise ValueError(f"{number} values of run lengths are no mask of {size[1]}x{size[0]} pixels")
    value_bits = read(32, 5) + 1
    length_bits = [read(37 + 4 * index, 4) + 1 for index in range(4)]
    values = np.zeros(number, bool)
    place, start = HEADER_BITS, 0
    while start < number:
        block = read(place, 3)
        count_bits = length_bits[block & 3]
        stop = min(number, start + read(place + 3, count_bits) + 1)
        place += 3 + count_bits
        if block & 4:
            values[start:stop] = read(place, value_bits) != 0
            place += value_bits
        else:
            count = stop - start
            literal = f"{read(place, count * value_bits):0{count * value_bits}b}".encode()
            values[start:stop] = (np.frombuffer(literal, np.uint8).reshape(count, -1) != ord("0")).any(1)
            place += count * value_bits
        start = stop
    return values.reshape(*size, CHANNELS)[..., -1]
