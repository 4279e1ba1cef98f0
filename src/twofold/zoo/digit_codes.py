"""The fixed codes of LeNet-5's output units: a picture of each digit in 7x12 points of +-1, 84 numbers.

The paper (figure 3) draws the printable ASCII characters so; these are our drawings of the ten digits. That they look
like the characters matters little for digits; that they are +-1 does: F6's squashing is most curved there.
"""

from __future__ import annotations

import numpy as np

_PICTURES = """
..###.. ...#... .#####. .#####. ....##. ####### ..####. ####### .#####. .#####.
.##.##. ..##... ##...## ##...## ...###. ##..... .##.... ##...## ##...## ##...##
##...## .###... .....## .....## ..####. ##..... ##..... .....## ##...## ##...##
##...## ..##... .....## .....## .##.##. ##..... ##..... ....##. ##...## ##...##
##...## ..##... ....##. ..####. ##..##. ######. ######. ....##. .#####. ##...##
##...## ..##... ...##.. .....## ##..##. .....## ##...## ...##.. ##...## .######
##...## ..##... ..##... .....## ####### .....## ##...## ...##.. ##...## .....##
##...## ..##... .##.... .....## ....##. .....## ##...## ..##... ##...## .....##
.##.##. ..##... ##..... ##...## ....##. ##...## ##...## ..##... ##...## ....##.
..###.. .####.. ####### .#####. ....##. .#####. .#####. ..##... .#####. .####..
....... ....... ....... ....... ....... ....... ....... ....... ....... .......
....... ....... ....... ....... ....... ....... ....... ....... ....... .......
"""


def codes(classes: int) -> np.ndarray:
    """float32 ``(classes, 84)`` of +-1: the digits, then (for more than ten classes) fixed random codes."""
    rows = [line.split() for line in _PICTURES.split("\n") if line]
    digits = [[1.0 if point == "#" else -1.0 for row in rows for point in row[digit]] for digit in range(10)]
    more = np.random.RandomState(1998).choice([-1.0, 1.0], (max(0, classes - 10), 84))
    return np.concatenate([np.array(digits), more])[:classes].astype(np.float32)
