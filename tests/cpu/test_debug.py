"""TWOFOLD_DEBUG: each level shows what it should, and what the lower ones do; cached or not."""

from __future__ import annotations

import pytest

import twofold as tw

# level -> what stands on stderr from there on (docs/how-to/look-inside.md)
SHOWN = {
    1: [": cpu program ", " ms, "],
    2: ["# cpu program ", " kernel calls (", " barriers"],
    3: ["# recorded\ngraph ", "# dead_code\ngraph "],
    4: ["# loops: "],
    5: ["# LLVM IR: ", "define void @"],
    6: ["# assembly: ", ".globl"],
}


def run(level: int, monkeypatch, capsys, n: int) -> str:
    monkeypatch.setenv("TWOFOLD_DEBUG", str(level))
    with tw.device("cpu"):
        f = tw.compile(lambda x: (tw.exp(x) * 2.0).sum())
        f(tw.ones((n, 7)))
    printed = capsys.readouterr()
    assert printed.out == ""
    return printed.err


@pytest.mark.parametrize("level", range(7))
def test_levels_add_up(level, monkeypatch, capsys):
    for n in (33, 33):  # the second time its kernels are known
        said = run(level, monkeypatch, capsys, n)
        for least, texts in SHOWN.items():
            for text in texts:
                assert (text in said) == (least <= level), (text, least)


def test_each_kernel_is_shown_once(monkeypatch, capsys):
    said = run(6, monkeypatch, capsys, 35)
    headers = [line for line in said.splitlines() if line.startswith("# assembly: ")]
    assert headers and len(headers) == len(set(headers))
