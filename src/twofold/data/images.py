"""Reading image files with Pillow (extra ``images``), which may be damaged or made to harm."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from twofold.base.errors import ArgumentError, FormatError, MissingDependencyError, UnsafeFileError

FORMATS = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}  # no others are tried: EPS, for one, would start an interpreter
SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)
CHANNELS = {"RGB": 3, "L": 1}
MAX_PIXELS = 1 << 26  # 67 million: beyond any camera's picture that one would train on


def read_image(path: str | os.PathLike, mode: str = "RGB", max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The image in a file, upright (EXIF), uint8 (3, H, W), or (1, H, W) grey with ``mode="L"``.

    FormatError for what is not, or no complete, image; UnsafeFileError for more than ``max_pixels`` pixels, before they
    are decoded; both name the file. Of several frames the first is read; transparency is dropped.
    """
    if mode not in CHANNELS:
        raise ArgumentError(f"read_image: mode {mode!r}; expected {' or '.join(map(repr, CHANNELS))}")
    pillow, transpose = _pillow()
    try:
        with pillow.open(path, formats=list(FORMATS)) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise UnsafeFileError(f"{path}: {width}x{height} pixels; at most max_pixels={max_pixels:,} are decoded")
            if image.mode in ("I", "F"):
                raise FormatError(
                    f"{path}: pixels are 32-bit numbers of unknown range; expected 8 or 16 bits a channel"
                )
            upright = transpose(image)
            if upright.mode.startswith("I;16"):  # Pillow would clip these to 255
                upright = pillow.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
            pixels = np.asarray(upright.convert(mode))
    except (FormatError, FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning) as error:
        raise UnsafeFileError(f"{path}: {error}; at most {max_pixels:,} pixels are decoded") from error
    except Exception as error:  # decoders of hostile files fail in every way there is
        raise FormatError(
            f"{path}: cannot be read as an image: {type(error).__name__}: {error}; "
            f"expected a whole {', '.join(FORMATS)} file"
        ) from error
    return pixels.reshape(*pixels.shape[:2], CHANNELS[mode]).transpose(2, 0, 1).copy()


def _pillow() -> tuple[Any, Any]:
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise MissingDependencyError("reading images needs Pillow: pip install 'twofold[images]'") from None
    return Image, ImageOps.exif_transpose
