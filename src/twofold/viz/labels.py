"""Where names go on a picture full of bubbles: beside their own, over no other name, bubble or edge if there is room."""

from __future__ import annotations

import math
from collections.abc import Sequence

Box = tuple[float, float, float, float]  # left, bottom, right, top
Circle = tuple[float, float, float]  # centre, radius

TURNS = [math.tau * k / 24 for k in range(24)]  # directions that are tried, from the right, against the clock
RINGS = range(2, 150, 4)  # distances from the bubble's edge that are tried
# What a place costs: an overlap more than any distance, a name over a name more than over a bubble
ON_NAME, ON_BUBBLE, OUTSIDE = 1e6, 1e4, 1e7


def place(circles: Sequence[Circle], sizes: Sequence[tuple[float, float]], bounds: Box, taken: Sequence[Box] = ()) -> list[Box]:
    """A box of size ``sizes[i]`` (width, height) for the name of each of ``circles``, all in one unit, say pixels.

    Greedy: the circle with most neighbours chooses first, the cheapest of its places. ``taken`` are boxes to keep clear
    of, such as a legend.

    >>> place([(50, 50, 10)], [(30, 8)], (0, 0, 200, 100))
    [(62.0, 46.0, 92.0, 54.0)]
    """
    boxes, found = list(taken), {}
    for i in sorted(range(len(circles)), key=lambda i: -_crowd(circles[i], circles)):
        others = [c for k, c in enumerate(circles) if k != i]
        found[i] = min(_places(circles[i], sizes[i]), key=lambda p: _cost(p, circles[i], boxes, others, bounds))
        boxes.append(found[i])
    return [found[i] for i in range(len(circles))]


def _crowd(circle: Circle, circles: Sequence[Circle]) -> float:
    """How crowded it is around a circle."""
    return sum(1 / (20 + math.dist(circle[:2], c[:2])) for c in circles)


def _places(circle: Circle, size: tuple[float, float]) -> list[Box]:
    """Boxes around a circle, each with its near side at one of the distances."""
    x, y, radius = circle
    width, height = size
    places = []
    for ring in RINGS:
        for turn in TURNS:
            across, up = math.cos(turn), math.sin(turn)
            left = x + across * (radius + ring) - width * (1 - across) / 2
            bottom = y + up * (radius + ring) - height * (1 - up) / 2
            places.append((left, bottom, left + width, bottom + height))
    return places


def _cost(box: Box, own: Circle, boxes: Sequence[Box], circles: Sequence[Circle], bounds: Box) -> float:
    inside = box[0] >= bounds[0] and box[1] >= bounds[1] and box[2] <= bounds[2] and box[3] <= bounds[3]
    bubbles = sum(gap(box, c) < 0 for c in circles)
    return (
        gap(box, own)
        + OUTSIDE * (not inside)
        + ON_NAME * sum(overlap(box, b) for b in boxes)
        + ON_BUBBLE * (bubbles + (gap(box, own) < 0))
    )


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
