"""Peers that go wrong, for the tests of benchmarks/compare.py: ``python fake_peer.py NAME``, NAME says how."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np

LOADED = {"import": 0.0, "converting": 0.0, "first": 0.0, "version": "1"}


def main(name: str) -> None:
    folder = Path()
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict = {}
        if request["do"] == "load":
            folder, answer = Path(request["folder"]), LOADED
        elif request["do"] == "run":
            if name == "dies":
                print("out of luck", file=sys.stderr, flush=True)
                os.abort()
            if name == "hangs":
                time.sleep(600)
            answer = {} if name == "forgets" else {"seconds": [1e-9] * request["steps"]}
        elif request["do"] == "output":
            np.save(folder / f"{name}.npy", np.zeros((1, 10), np.float32))
            answer = {"output": str(folder / f"{name}.npy")}
        print("what?" if name == "babbles" else json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
