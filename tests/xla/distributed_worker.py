"""One process of a distributed training, run by test_distributed: trains on its part of each batch, prints as JSON."""

from __future__ import annotations

import json
import os
import sys

from xla_training import batches, make_step

import twofold as tw

GROUP = "xla:cpu:all"


def main(shard_state: bool, steps: int, last: str) -> None:
    """``last``: what the last process does: "exit" after a step (with 3), or use a "device" before it joins; or the first
    takes "eager" steps after the others have ended."""
    is_last = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1
    if is_last and last == "device":
        tw.ones(1).to("xla:cpu")
    tw.distributed.initialize(timeout=60)
    rank, processes = tw.distributed.rank(), tw.distributed.processes()
    model, _, step = make_step(devices=GROUP, shard_state=shard_state)
    losses = []
    for images, labels in batches(steps):
        size = len(images) // processes
        mine = slice(rank * size, (rank + 1) * size)
        losses.append(float(step(tw.distributed.batch(images[mine], GROUP), tw.distributed.batch(labels[mine], GROUP))))
        if is_last and last == "exit":
            sys.exit(3)
    if last == "eager" and rank == 0:
        part = tw.distributed.batch(images[mine], GROUP)
        print((part * 2.0).sum().item())
    weight = model.head.weight.numpy().tolist()
    where = str(model.head.weight.device)
    print(json.dumps({"rank": tw.distributed.rank(), "device": where, "losses": losses, "weight": weight}))


main(sys.argv[1] == "sharded", int(sys.argv[2]), *sys.argv[3:] or [""])
