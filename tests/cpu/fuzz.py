"""More random graphs than the tests run: compiled, judged by the float64 reference, what is wrong shrunk and printed.

    python tests/cpu/fuzz.py --seeds 1000:2000                 # every family
    python tests/cpu/fuzz.py images training --seeds 7:8       # one graph of two families
    python tests/cpu/fuzz.py steps --seeds 0:500               # steps that keep state, three in a row, as users run them
    python tests/cpu/fuzz.py errors --seeds 0:500              # such steps, of which some end in an error
    python tests/cpu/fuzz.py kernels --seeds 0:500             # convolutions, kernel by kernel, by one thread and by several

A finding becomes a case of ``test_fuzz_findings.py``.
"""

from __future__ import annotations

import argparse
import sys
import time

from fuzz_check import FAMILIES, check
from fuzz_kernels import check_kernels
from fuzz_state import check_after_errors, check_steps

OTHERS = {"steps": check_steps, "errors": check_after_errors, "kernels": check_kernels}


def main() -> int:
    """How many graphs are wrong, or end in an error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=", ".join([*FAMILIES, *OTHERS]))
    parser.add_argument("--seeds", default="0:100", metavar="FIRST:END")
    options = parser.parse_args()
    known = (*FAMILIES, *OTHERS)
    if unknown := set(options.families) - set(known):
        parser.error(f"unknown families {sorted(unknown)}; known are {', '.join(known)}")
    first, end = map(int, options.seeds.split(":"))
    begun, wrong = time.monotonic(), 0
    for family in options.families or known:
        for seed in range(first, end):
            try:
                OTHERS[family](seed) if family in OTHERS else check(family, seed)
            except Exception as error:  # the next graph may tell more
                wrong += 1
                print(f"--- {family} {seed}: {type(error).__name__}: {error}", flush=True)
        print(f"{family}: seeds {first} to {end - 1} done, {wrong} wrong so far, {time.monotonic() - begun:.0f} s", flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(min(main(), 1))
