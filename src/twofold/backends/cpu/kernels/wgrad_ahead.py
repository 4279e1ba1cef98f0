"""What a weight gradient (``wgrad.py``) asks for on its way: what is copied next, and the next tile of the result.

A few lines go with every row, or with every round of a 1x1 kernel's loop. Where dy has few products (stems), a tile asks for a
line of every pixel, as it goes.
"""

from __future__ import annotations

from twofold.backends.cpu.kernels.tile import LINE, Fetch
from twofold.backends.cpu.kernels.wgrad_copies import Copies
from twofold.backends.cpu.kernels.wgrad_plan import Slab, Unit
from twofold.backends.cpu.llvm import Index, Value, const

MOST = 16  # pixels of which a round asks for a line


class Ahead(Copies):
    """Emits these prefetches."""

    def _line_ahead(self, unit: Unit, kh: Index, kw: Index) -> Value:
        """The line of its first pixel that a tile asks for, of the dy that is copied next."""
        f, width = self.f, self.packed.block
        tile = f.add(f.mul(f.div(kh, self.tall), len(self.taps)), f.div(kw, self.taps[0][2]))
        return f.gep(self._next_dy(unit), f.mul(f.imin(tile, -(-width // LINE) - 1), LINE))

    def _next_tile(self, target: Value, size: int, tap: int) -> Fetch:
        """The next tile of the result, in even shares of a tile's rounds: of the next strip, or of the next ``tap``."""
        f, start = self.f, self.f.gep(target, size if self.point else tap)
        each = -(-size // LINE // self.rounds)

        def fetch(number: Index) -> None:
            first = f.mul(number, each)
            for k in range(each):
                f.prefetch(f.gep(start, f.mul(f.add(first, k), LINE)), 2)

        return fetch

    def _next_pixels(self, slab: Slab, unit: Unit, number: Index) -> Fetch:
        """What is copied next: the first tiles of a unit ask for dy of the next block, the others for x of the next chunk. A
        tile goes along the pixels, as many a round as suffice in all, and asks for as many lines of each as a block has: so a
        round has one place to compute. (Shares even to the line took longer to compute than they saved.)"""
        f, line, tiles = self.f, LINE * (2 if self.pairs else 1), self._tiles(slab)
        wide = -(-self.packed.block // line)  # lines of a pixel
        parts = -(-slab.channels // (wide * line))  # of a pixel of x
        usual = self.blocks if self.parts > 1 else -(-self.blocks // 2)  # units of a thread in a chunk

        def enough(many: int) -> bool:
            of_dy, of_x = self._runs(many)
            return (tiles - of_dy) * usual >= of_x * parts

        many = next(filter(enough, (1, 2, 3)), 4)  # pixels a round
        pixels, (of_dy, of_x) = many * self.rounds, self._runs(many)
        share = f.add(f.mul(f.sub(unit.index, unit.low), max(1, tiles - of_dy)), f.sub(number, of_dy))
        part, turn = f.divmod_chain(f.imin(share, of_x * parts), [parts, of_x])
        x = f.gep(unit.next_x, f.dot([(part, wide * line), (turn, pixels * self.ldx)]), self.element)
        dy = f.gep(self._next_dy(unit), f.mul(number, pixels * self.ldy), self.element)
        return self._either(f.icmp("slt", f.index(number), of_dy), dy, x, many, wide)

    def _next_groups(self, slab: Slab, unit: Unit, dy: Value, number: Index) -> Fetch:
        """What is copied next of whole groups: first ``dy`` of the next chunk, then its x, one line of many pixels for each
        tile of all units."""
        f, conv, line, tiles = self.f, self.conv, LINE * (2 if self.pairs else 1), self._tiles(slab)
        dy_parts, x_parts = (-(-slab.groups * channels // line) for channels in (conv.og, conv.cg))  # lines of a pixel

        def enough(many: int) -> bool:
            of_dy, of_x = self._runs(many)
            return of_dy * dy_parts + of_x * x_parts <= tiles * slab.groups * self.blocks

        many = next(filter(enough, range(1, MOST)), MOST)
        pixels, (of_dy, of_x) = many * self.rounds, self._runs(many)
        share = f.add(f.mul(f.sub(unit.index, unit.low), tiles), number)
        part, turn = f.divmod_chain(share, [dy_parts, of_dy])
        start = f.add(f.mul(unit.group, conv.og), f.mul(f.add(f.mul(turn, pixels), self.pixels), self.ldy))
        dy = f.gep(dy, f.add(start, f.mul(part, line)), self.element)
        part, turn = f.divmod_chain(f.imin(f.sub(share, of_dy * dy_parts), of_x * x_parts), [x_parts, of_x])
        place = f.dot([(unit.group, conv.cg), (part, line), (turn, pixels * self.ldx)])
        x = f.gep(unit.next_x, place, self.element)
        return self._either(f.icmp("slt", f.index(share), of_dy * dy_parts), dy, x, many, 1)

    def _tiles(self, slab: Slab) -> int:
        """Tiles of a unit."""
        strips = sum(kind.count for kind in self._strips(slab))
        return strips * (self.conv.kh // self.tall) * sum(count for _, count, _ in self.taps)

    def _runs(self, many: int) -> tuple[int, int]:
        """Tiles after which all pixels of a chunk's dy had their turn, and all of its x, ``many`` in a round."""
        conv = self.conv
        lines = self.images * conv.h if self.rows == conv.oh else self.rows * conv.stride[0]
        return -(-self.pixels // (many * self.rounds)), -(-lines * conv.w // (many * self.rounds))

    def _either(self, first: Value, dy: Value, x: Value, many: int, wide: int) -> Fetch:
        """``wide`` lines of ``many`` pixels in every round, of dy or of x."""
        f, line = self.f, LINE * (2 if self.pairs else 1)
        start, pitch = f.select(first, dy, x), f.select(first, const("i64", self.ldy), const("i64", self.ldx))

        def fetch(number: Index) -> None:
            begin = f.mul(number, many)
            for k in range(many):
                place = f.gep(start, f.mul(f.add(begin, k), pitch), self.element)
                for at in range(0, wide * line, line):
                    f.prefetch(f.gep(place, at, self.element), 2)

        return fetch

    def _ahead(self, slab: Slab, unit: Unit, strip: Index) -> None:
        """Ask for a few of the lines that are copied next, before a tile: dy of the next block, x of the next chunk."""
        f, width, kind, line_size = self.f, self.packed.block, self.element, LINE * (2 if self.pairs else 1)
        tiles = sum(kind.count for kind in self._strips(slab))
        lines = -(-self.pixels // tiles)
        dy = f.gep(self._next_dy(unit), f.mul(strip, lines * self.ldy), kind)
        with f.loop(0, lines) as line:
            for at in range(0, width, line_size):
                f.prefetch(f.gep(dy, f.add(f.mul(line.index, self.ldy), at), kind), 2)
        each = -(-slab.channels // line_size)  # lines of a pixel of x
        shares = f.mul(f.sub(unit.high, unit.low), tiles)
        share = f.div(f.add(f.sub(shares, 1), self.pixels * each), shares)
        start = f.mul(f.add(f.mul(f.sub(unit.index, unit.low), tiles), strip), share)
        with f.loop(start, f.add(start, share)) as line:
            row, column, part = f.divmod_chain(line.index, [0, self.conv.ow, each])
            vertical, horizontal = self.conv.stride
            place = f.dot([(row, vertical * self.conv.w * self.ldx), (column, horizontal * self.ldx), (part, line_size)])
            f.prefetch(f.gep(unit.next_x, place, kind), 2)

    def _next_dy(self, unit: Unit) -> Value:
        """The dy that is copied next: of the next block, or of the first one in the next chunk."""
        f, width = self.f, self.packed.block
        first_again = f.add(self.pixels * self.ldy, f.mul(f.sub(unit.low, unit.index), width))
        more = f.icmp("slt", f.add(unit.index, 1), f.index(unit.high))
        return f.gep(unit.dy, f.select(more, const("i64", width), f.index(first_again)), self.element)
