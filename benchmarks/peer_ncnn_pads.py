"""What ncnn's converter pnnx leaves undone: ONNX's ``Pad``."""

from __future__ import annotations


def without_pads(text: str, pads: list[list[int]]) -> str:
    """The layers with ONNX's ``Pad`` (zeros around NCHW images), which pnnx leaves untranslated, moved into the convolution
    that follows, where ncnn's users would have it. ``pads`` are those of the graph, in its order."""
    magic, _, *lines = text.splitlines()
    rows, merged, remaining = [line.split() for line in lines], {}, iter(pads)
    kept: list[list[str]] = []
    for row in rows:
        kind, ins, outs = row[0], int(row[2]), int(row[3])
        if kind == "Pad":
            merged[row[5]] = (row[4], next(remaining))
            continue
        for k in range(4, 4 + ins):
            if row[k] in merged:
                row[k], (_, _, top, left, _, _, bottom, right) = merged[row[k]]
                if kind != "Convolution":
                    raise NotImplementedError(f"pnnx left a Pad untranslated before a {kind}")
                row[4 + ins + outs :] = _padded(row[4 + ins + outs :], {4: left, 14: top, 15: right, 16: bottom})
        kept.append(row)
    blobs = {name for row in kept for name in row[4 + int(row[2]) : 4 + int(row[2]) + int(row[3])]}
    return "\n".join([magic, f"{len(kept)} {len(blobs)}", *(" ".join(row) for row in kept)]) + "\n"


def _padded(options: list[str], more: dict[int, int]) -> list[str]:
    known = {int(k): v for k, v in (option.split("=") for option in options)}
    known.setdefault(14, known.get(4, "0"))  # ncnn's rule: top is left, right is left, bottom is top
    known.setdefault(15, known.get(4, "0"))
    known.setdefault(16, known[14])
    known |= {k: str(int(known.get(k, "0")) + n) for k, n in more.items()}
    return [f"{k}={v}" for k, v in known.items()]
