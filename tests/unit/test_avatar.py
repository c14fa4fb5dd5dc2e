"""The generated pictures: stable for ever, readable anywhere, and never two alike."""

from __future__ import annotations

import hashlib
import struct
import zlib

from hypothesis import given
from hypothesis import strategies as st

from homeroom.avatar import (
    ACCENTS,
    BACKGROUNDS,
    CELL_PX,
    CELLS,
    LIGHT,
    SIZE_PX,
    avatar_digest,
    avatar_png,
)

AGENT = "agent-597b5756-2915-4560-ba6b-91005f085166"


def read_png(data: bytes) -> tuple[list[list[int]], list[str]]:
    """Pixels (numbers of colours) and palette, read as a browser would: checksums and all."""
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, at = {}, 8
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        (sum_,) = struct.unpack(">I", data[at + 8 + size : at + 12 + size])
        assert sum_ == zlib.crc32(kind + body)
        chunks[kind] = body
        at += 12 + size
    assert list(chunks) == [b"IHDR", b"PLTE", b"IDAT", b"IEND"]
    assert struct.unpack(">IIBBBBB", chunks[b"IHDR"]) == (SIZE_PX, SIZE_PX, 2, 3, 0, 0, 0)
    raw = zlib.decompress(chunks[b"IDAT"])
    stride = SIZE_PX // 4 + 1
    lines = [raw[at : at + stride] for at in range(0, len(raw), stride)]
    assert len(lines) == SIZE_PX and not any(line[0] for line in lines)
    pixels = [[byte >> shift & 3 for byte in line[1:] for shift in (6, 4, 2, 0)] for line in lines]
    palette = chunks[b"PLTE"].hex()
    return pixels, [palette[at : at + 6] for at in range(0, len(palette), 6)]


def luminance(colour: str) -> float:
    """Source: https://www.w3.org/TR/WCAG22/#dfn-relative-luminance"""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    r, g, b = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one: str, other: str) -> float:
    dark, bright = sorted((luminance(one), luminance(other)))
    return (bright + 0.05) / (dark + 0.05)


def test_the_picture_of_an_agent_is_the_same_for_ever() -> None:
    # Whoever changes it gives every agent of every installation a new face.
    whole = hashlib.sha256(avatar_png(AGENT)).hexdigest()
    assert whole == "aee66af32c1d0bd8215ccd295a6ab772dfd6dbef8ff9f26a2eeaffc64dd117ce"
    assert avatar_digest(AGENT) == whole[:16]


@given(st.text(max_size=60))
def test_whatever_the_id_it_is_a_small_png_that_is_never_empty_nor_full(seed: str) -> None:
    data = avatar_png(seed)
    pixels, palette = read_png(data)
    assert len(data) < 6_000
    assert palette[0] in BACKGROUNDS and palette[1] == LIGHT and palette[2] in ACCENTS
    middles = range(CELL_PX // 2, SIZE_PX, CELL_PX)
    cells = [[pixels[y][x] for x in middles] for y in middles]
    assert all(pixels[y][x] == cells[y // CELL_PX][x // CELL_PX]
               for y in range(SIZE_PX) for x in range(SIZE_PX))  # fmt: skip
    assert all(row == row[::-1] for row in cells), "mirrored"
    assert len(cells) == CELLS and not any(cells[0]) and not any(row[0] for row in cells), "a rim"
    drawn = [cell for row in cells for cell in row[:4] if cell]
    assert (drawn.count(1), drawn.count(2)) == (5, 5)


def test_a_lone_surrogate_in_an_id_is_no_problem() -> None:
    assert avatar_png("\ud800") != avatar_png("\ud801")


def test_the_background_stands_out_from_white_and_from_black_and_the_pattern_from_it() -> None:
    for background in BACKGROUNDS:
        assert contrast(background, "ffffff") > 4.5 and contrast(background, "000000") > 4
        assert contrast(background, LIGHT) > 4.5
        assert all(contrast(background, accent) > 3 for accent in ACCENTS)


def test_a_thousand_agents_can_be_told_apart_at_32_pixels() -> None:
    """A cell is more than four pixels wide at that size, so a cell that differs can be seen."""
    assert 32 / CELLS > 4
    assert len({avatar_png(f"agent-{number}") for number in range(1000)}) == 1000
