"""Where names go on a picture full of bubbles: beside their own, over no other name, bubble or edge if there is room."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

Box = tuple[float, float, float, float]  # left, bottom, right, top
Circle = tuple[float, float, float]  # centre, radius

TURNS = [math.tau * k / 24 for k in range(24)]  # directions that are tried, from the right, against the clock
RINGS = range(2, 150, 4)  # distances from the bubble's edge that are tried
OUTSIDE, ON_NAME = 10_000, 100  # how much worse than lying on a bubble


def place(
    circles: Sequence[Circle], sizes: Sequence[tuple[float, float]], bounds: Box, taken: Sequence[Box] = ()
) -> list[Box]:
    """A box of size ``sizes[i]`` (width, height) for the name of each of ``circles``, all in one unit, say pixels.

    Greedy: one after another takes the best of its places. Who comes first decides much, so that several orders are
    tried, and the one whose names are nearest to their bubbles wins. ``taken`` are boxes to keep clear of, such as a
    legend.

    >>> place([(50, 50, 10)], [(30, 8)], (0, 0, 200, 100))
    [(62.0, 46.0, 92.0, 54.0)]
    """
    indices = range(len(circles))
    orders = [
        sorted(indices, key=lambda i: -_crowd(circles[i], circles)),
        sorted(indices, key=lambda i: -circles[i][2]),
        sorted(indices, key=lambda i: -circles[i][0]),
        sorted(indices, key=lambda i: -circles[i][1]),
    ]
    tries = [_in_order(order, circles, sizes, bounds, taken) for order in orders]
    return min(tries, key=lambda t: (t[0], sum(gap(box, c) ** 2 for box, c in zip(t[1], circles))))[1]


def _in_order(
    order: Sequence[int],
    circles: Sequence[Circle],
    sizes: Sequence[tuple[float, float]],
    bounds: Box,
    taken: Sequence[Box],
) -> tuple[int, list[Box]]:
    """What all places cost, and the places."""
    boxes, found, total = list(taken), {}, 0
    for i in order:
        best: tuple[int, Box] | None = None
        for box in _places(circles[i], sizes[i]):
            cost = _cost(box, boxes, circles, bounds)
            if best is None or cost < best[0]:
                best = cost, box
            if cost == 0:
                break
        assert best is not None  # there are places
        total += best[0]
        found[i] = best[1]
        boxes.append(best[1])
    return total, [found[i] for i in range(len(circles))]


def _crowd(circle: Circle, circles: Sequence[Circle]) -> float:
    """How crowded it is around a circle."""
    return sum(1 / (20 + math.dist(circle[:2], c[:2])) for c in circles)


def _places(circle: Circle, size: tuple[float, float]) -> Iterator[Box]:
    """Boxes around a circle, the nearest first."""
    x, y, radius = circle
    width, height = size
    for ring in RINGS:
        for turn in TURNS:
            across, up = math.cos(turn), math.sin(turn)
            left = x + across * (radius + ring) - width * (1 - across) / 2
            bottom = y + up * (radius + ring) - height * (1 - up) / 2
            yield left, bottom, left + width, bottom + height


def _cost(box: Box, boxes: Sequence[Box], circles: Sequence[Circle], bounds: Box) -> int:
    """What speaks against a place, however far it is: of equals the nearest is taken, which comes first."""
    outside = box[0] < bounds[0] or box[1] < bounds[1] or box[2] > bounds[2] or box[3] > bounds[3]
    names = sum(overlap(box, b) for b in boxes)
    bubbles = sum(gap(box, c) < 0 for c in circles)
    return OUTSIDE * outside + ON_NAME * names + bubbles


def overlap(a: Box, b: Box) -> bool:
    """Whether two boxes have a point in common."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def nearest(box: Box, x: float, y: float) -> tuple[float, float]:
    """The point of a box that is nearest to a point."""
    return min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])


def gap(box: Box, circle: Circle) -> float:
    """How far a box is from a circle; negative where they overlap."""
    return math.dist(nearest(box, *circle[:2]), circle[:2]) - circle[2]


__all__ = ["Box", "gap", "nearest", "overlap", "place"]
