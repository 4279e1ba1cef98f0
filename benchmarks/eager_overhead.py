"""What one eager op on ten elements costs in Python, and where the time goes.

    python benchmarks/eager_overhead.py            # microseconds: the best of eleven rounds of 2,000
    python benchmarks/eager_overhead.py --profile  # the functions behind `x + y`
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import timeit

import twofold as tw

X, Y = tw.ones(10), tw.ones(10)
TRACKED = tw.ones(10).requires_grad_()
CASES = {
    "x + y": lambda: X + Y,
    "tw.exp(x)": lambda: tw.exp(X),
    "x * 2.0": lambda: X * 2.0,
    "x + y, recorded for gradients": lambda: TRACKED + Y,
    "x.sum()": lambda: X.sum(),
    "x[3]": lambda: X[3],
}


def main() -> None:
    """Print the table, or the profile."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", action="store_true", help="profile x + y instead")
    if parser.parse_args().profile:
        with cProfile.Profile() as profile:
            for _ in range(20_000):
                X + Y
        pstats.Stats(profile).sort_stats("tottime").print_stats(12)
        return
    for name, run in CASES.items():
        print(f"{name:<32}{min(timeit.repeat(run, number=2000, repeat=11)) / 2000 * 1e6:6.1f} us")


if __name__ == "__main__":
    main()
