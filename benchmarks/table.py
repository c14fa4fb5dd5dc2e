"""Samples, and the table they become.

Owns the arithmetic and the printing. A row compares what Homeroom took with what the same thing
took without it, the two measured in turns: machines differ and are noisy, so a ratio is the
promise and the milliseconds are only there to be read.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

HEAD = ("what", "n", "Homeroom p50 / p95", "without p50 / p95", "more by", "ratio p50 / p95", "")


def p95(values: Sequence[float]) -> float:
    """The smallest value that at least 95 % of ``values`` do not exceed."""
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]


@dataclass(frozen=True)
class Row:
    """One line of the table. ``ours`` and ``bare`` are of equal length, measured in turns."""

    what: str
    ours: Sequence[float]
    bare: Sequence[float] = ()
    unit: str = "ms"
    target: float | None = None
    """The ratio of the medians that is promised."""
    limit: float | None = None
    """What none of ``ours`` may exceed, in their unit, where somebody else's patience sets it."""
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Median over median; None without the other side."""
        return median(self.ours) / median(self.bare) if self.bare else None

    @property
    def kept(self) -> bool:
        if self.limit is not None and max(self.ours) > self.limit:
            return False
        return self.target is None or self.ratio is None or self.ratio <= self.target

    def cells(self) -> tuple[str, ...]:
        def two(values: Sequence[float]) -> str:
            return f"{_short(median(values))} / {_short(p95(values))} {self.unit}"

        verdict = self.note
        if self.target is not None:
            verdict = f"{'kept' if self.kept else 'MISSED'}: ≤ {self.target:.2f}× {verdict}".strip()
        elif self.limit is not None:
            share = max(self.ours) / self.limit
            kept = "kept" if self.kept else "MISSED"
            verdict = f"{kept}: at most {share:.2f}× of {_short(self.limit)} {self.unit} {verdict}"
        if not self.bare:
            return (self.what, str(len(self.ours)), two(self.ours), "", "", "", verdict)
        more = _short(median(self.ours) - median(self.bare))
        tail = p95(self.ours) / p95(self.bare)
        ratios = f"{self.ratio:.2f}× / {tail:.2f}×"
        more = f"{more} {self.unit}"
        return (
            self.what,
            str(len(self.ours)),
            two(self.ours),
            two(self.bare),
            more,
            ratios,
            verdict,
        )

    def data(self) -> dict[str, Any]:
        """The row as JSON, samples included."""
        return {
            "what": self.what,
            "unit": self.unit,
            "ours": list(self.ours),
            "bare": list(self.bare),
            "ratio": self.ratio,
            "target": self.target,
            "limit": self.limit,
            "kept": self.kept,
            "note": self.note,
        }


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table whose columns line up in a terminal, too."""
    lines = [HEAD, *(row.cells() for row in rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(HEAD))]
    lines.insert(1, tuple("-" * width for width in widths))
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


async def in_turns(
    count: int, *sides: Callable[[], Awaitable[float]], warm_up: int = 1
) -> list[list[float]]:
    """Runs the sides A B A B ..., ``count`` times each; what they returned, side by side.

    The first ``warm_up`` rounds are not counted, and every other round begins at the other end, so
    that no side always follows the same one.
    """
    samples: list[list[float]] = [[] for _ in sides]
    for number in range(-warm_up, count):
        order = list(enumerate(sides))
        for at, side in order if number % 2 else reversed(order):
            value = await side()
            if number >= 0:
                samples[at].append(value)
    return samples


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
