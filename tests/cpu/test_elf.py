"""Objects loaded without LLVM run as those that LLVM loads, and what the loader does not know is left to LLVM."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import test_engine
from kernel_oracles import HOST

from twofold.backends.cpu import elf, jit
from twofold.backends.cpu.llvm import Module
from twofold.base.errors import GraphError

pytestmark = pytest.mark.skipif(not elf.SUPPORTED, reason="the loader is for Linux on x86-64")


def object_of(text: str) -> bytes:
    return jit.compile_ir(f'target triple = "{HOST.triple}"\n{text}')


def probe(library: jit.Library, argument: int) -> int:
    return library.function("probe", ctypes.c_int64, result=ctypes.c_int64)(argument)


def test_a_program_is_the_same_from_either_loader(monkeypatch):
    own = test_engine.run_chain(test_engine.chain(5), 2)
    monkeypatch.setattr(elf, "load", lambda objects: None)
    program = test_engine.chain(5)
    assert program._library._image is None
    np.testing.assert_array_equal(own, test_engine.run_chain(program, 2))


def test_functions_of_other_objects_and_of_the_process_are_found():
    calls = object_of(
        "declare i64 @labs(i64)\ndeclare i64 @other(i64)\n"
        "define i64 @probe(i64 %x) {\n%a = call i64 @labs(i64 %x)\n%b = call i64 @other(i64 %a)\nret i64 %b\n}"
    )
    other = object_of("define i64 @other(i64 %x) {\n%y = mul i64 %x, 3\nret i64 %y\n}")
    for objects in ([calls, other], [other, calls]):
        library = jit.link(objects)
        assert library._image is not None
        assert probe(library, -7) == 21
    with pytest.raises(GraphError, match="nothing"):
        library.address("nothing")


def test_constants_are_aligned_and_reached():
    module = Module(HOST)
    f = module.function("probe", [("i64", "i")], "i64")
    table = module.constant("table", "[5 x i64]", "[i64 2, i64 3, i64 5, i64 7, i64 11]")
    f.ret(f.load("i64", f.gep(table, f.arg("i"), "i64")))
    library = jit.link([object_of("define void @odd() {\nret void\n}"), jit.compile_ir(module.text())])
    assert library._image is not None
    assert [probe(library, i) for i in range(5)] == [2, 3, 5, 7, 11]


WRITABLE = (
    "@count = global i64 5\ndefine i64 @probe(i64 %x) {\n%a = load i64, ptr @count\n%b = add i64 %a, %x\nret i64 %b\n}"
)
THROUGH_A_TABLE = (
    "declare i64 @labs(i64)\ndefine ptr @where() {\nret ptr @labs\n}\ndefine i64 @probe(i64 %x) {\nret i64 %x\n}"
)


@pytest.mark.parametrize(("text", "expected"), [(WRITABLE, 7), (THROUGH_A_TABLE, 2)])
def test_what_it_does_not_know_is_left_to_llvm(text, expected):
    payload = object_of(text)
    assert elf.load([payload]) is None
    assert probe(jit.link([payload]), 2) == expected


def test_what_is_no_object_or_a_part_of_one_is_refused():
    payload = object_of(
        "declare i64 @labs(i64)\ndefine i64 @probe(i64 %x) {\n%a = call i64 @labs(i64 %x)\nret i64 %a\n}"
    )
    assert elf.load([payload]) is not None
    assert elf.load([b"", payload]) is None
    for length in range(0, len(payload) - 64, 40):  # the table of sections comes last
        assert elf.load([payload[:length]]) is None


def test_a_function_that_is_nowhere_is_an_error():
    payload = object_of(
        "declare i64 @tw_nowhere(i64)\ndefine i64 @probe(i64 %x) {\n%a = call i64 @tw_nowhere(i64 %x)\nret i64 %a\n}"
    )
    assert elf.load([payload]) is None
    with pytest.raises(GraphError, match="probe"):
        jit.link([payload]).address("probe")
