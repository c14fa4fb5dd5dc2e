"""The generated pictures of agents, of the space and of the hub: an id in, a PNG out.

Pure. Invariant: equal ids give equal bytes, for ever and on every machine, so that a picture which
was uploaded once is known again by its digest. That is why the PNG is written here and not by a
library: what deflate makes of the same pixels differs from one build of zlib to the next, so the
pixels are stored as they are.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from functools import lru_cache

CELL_PX = 20
CELLS = 7
"""A 5x5 pattern with a rim of one cell, so that clients that cut a circle cut nothing off it."""
SIZE_PX = CELL_PX * CELLS
MIME_TYPE = "image/png"

BACKGROUNDS = (
    "d03838", "ae5a29", "886e20", "6c771c", "4e7e1d", "2b821e", "1e8237", "1e805c",
    "1d7d7d", "2777a7", "476ad4", "6e5fd9", "924fd6", "b730cb", "c62ea0", "cf306c",
)  # fmt: skip
"""Sixteen hues of one lightness, which stands out from white and from black alike."""
LIGHT = "ffffff"
ACCENTS = ("ffd75e", "9df0c8", "ffc2dc", "b3e1ff")

_HALF = 3 * 5
"""Cells that are chosen; the rest is their mirror image."""


def avatar_png(seed: str) -> bytes:
    """The picture for ``seed``: a PNG of ``SIZE_PX`` squared, some 5 kB.

    Every picture has five light and five accented cells among its fifteen, so none is empty. Two
    seeds in a thousand agents share a picture about once in a hundred installations.

    Source: https://www.w3.org/TR/png-3/ (chunks, palette, two bits per pixel) and
    https://www.rfc-editor.org/rfc/rfc1951#section-3.2.4 (a stored block).
    """
    digest = hashlib.sha256(f"homeroom avatar 1 {seed}".encode(errors="surrogatepass")).digest()
    by_chance = sorted(range(_HALF), key=lambda cell: (digest[cell], cell))
    colour_of = dict.fromkeys(by_chance[:5], 1) | dict.fromkeys(by_chance[5:10], 2)
    palette = (BACKGROUNDS[digest[15] % 16], LIGHT, ACCENTS[digest[16] % 4])
    rows = [[0] * CELLS]
    for y in range(5):
        left = [colour_of.get(y * 3 + x, 0) for x in range(3)]
        rows.append([0, *left, *left[1::-1], 0])
    rows.append([0] * CELLS)
    return _png(rows, "".join(palette))


@lru_cache(maxsize=10_000)  # every sync asks for every agent's
def avatar_digest(seed: str) -> str:
    """The first 16 hex digits of the SHA-256 of that picture."""
    return hashlib.sha256(avatar_png(seed)).hexdigest()[:16]


def _png(rows: list[list[int]], palette: str) -> bytes:
    """``rows`` of cells, each the number of its colour, as a PNG."""
    pixels = bytearray()
    for row in rows:
        wide = [colour for colour in row for _ in range(CELL_PX)]
        fours = zip(wide[::4], wide[1::4], wide[2::4], wide[3::4], strict=True)
        packed = bytes(a << 6 | b << 4 | c << 2 | d for a, b, c, d in fours)
        pixels += (b"\0" + packed) * CELL_PX  # the first byte of a line: no filter
    size = len(pixels)
    stored = struct.pack("<BHH", 1, size, size ^ 0xFFFF) + pixels
    deflated = b"\x78\x01" + stored + struct.pack(">I", zlib.adler32(pixels))
    header = struct.pack(">IIBBBBB", SIZE_PX, SIZE_PX, 2, 3, 0, 0, 0)
    body = {b"IHDR": header, b"PLTE": bytes.fromhex(palette), b"IDAT": deflated, b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in body.items())


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
