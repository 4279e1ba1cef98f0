"""The memory plan: temporaries share one arena by their lifetimes; the peak is known before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from twofold.backends.cpu.loops import Buffer
from twofold.backends.cpu.lowering.steps import Step

ALIGN = 64


@dataclass
class Block:
    """A piece of memory needed from step ``first`` to step ``last``, both included."""

    size: int
    first: int
    last: int
    offset: int = 0


def padded(size: int) -> int:
    """Bytes that ``size`` bytes take in an arena: whole cache lines, and at least one."""
    return -(-max(1, size) // ALIGN) * ALIGN


def lifetimes(steps: Sequence[Step], fixed: Iterable[Buffer]) -> dict[Buffer, Block]:
    """When each temporary (any buffer that is not ``fixed``) is needed."""
    outside, blocks = set(fixed), {}
    for at, step in enumerate(steps):
        for buffer in [*step.writes(), *step.reads()]:
            if buffer in outside:
                continue
            if buffer not in blocks:
                blocks[buffer] = Block(padded(buffer.nbytes), at, at)
            blocks[buffer].last = at
    return blocks


def place(blocks: Sequence[Block]) -> int:
    """Give every block an offset so that none alive together overlap; returns the arena's size. Largest first, each in the
    lowest gap that fits (the greedy-by-size rule of Pisarchyk and Lee, "Efficient memory management for deep neural net
    inference", 2020)."""
    done: list[Block] = []
    for block in sorted(blocks, key=lambda b: (-b.size, b.first)):
        at = 0
        for other in sorted((o for o in done if o.first <= block.last and block.first <= o.last), key=lambda o: o.offset):
            if at + block.size <= other.offset:
                break
            at = max(at, other.offset + other.size)
        block.offset = at
        done.append(block)
    return max((b.offset + b.size for b in done), default=0)
