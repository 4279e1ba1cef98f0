"""Make the golden PyTorch files of this folder again (needs torch): python tests/io/data/make_golden_pth.py

Values are ``expected()`` of ``tests/io/test_weights_golden.py``, which reads the files without torch.
"""

from __future__ import annotations

from pathlib import Path

import torch

HERE = Path(__file__).parent


def state_dict() -> dict[str, torch.Tensor]:
    """A few kilobytes of every kind: dtypes, a transposed view, a shared storage, a scalar, an empty tensor."""
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    return {
        "conv.weight": torch.linspace(-1, 1, 36).reshape(4, 1, 3, 3),
        "rows": base[1:3],
        "transposed": base.T,
        "half": torch.tensor([0.5, -2.0, 65504.0], dtype=torch.float16),
        "brain": torch.tensor([1.0, -3.0, 2.0**100], dtype=torch.bfloat16),
        "mask": torch.tensor([True, False, True]),
        "bytes": torch.tensor([0, 127, 255], dtype=torch.uint8),
        "bn.num_batches_tracked": torch.tensor(7),
        "empty": torch.zeros(0, 3),
    }


if __name__ == "__main__":
    torch.save(state_dict(), HERE / "golden_zip.pth")
    torch.save(state_dict(), HERE / "golden_legacy.pth", _use_new_zipfile_serialization=False)
    checkpoint = {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state_dict().items()}, "best": 0.5}
    torch.save(checkpoint, HERE / "golden_checkpoint.pth", pickle_protocol=4)
