"""Small pictures of elements that are images: arrays of pixels, and files such as JPEG.

Pillow makes them. Without it there is none, and the table says how to get it.
"""

from __future__ import annotations

import base64
import io
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Budget", "looks_like_image", "thumbnail"]

SIZE = 144
"""Pixels of the longer side."""

LEAST = 8
"""An array with a shorter side is no picture."""

MOST_PIXELS = {"JPEG": 64_000_000, "PNG": 16_000_000, "GIF": 16_000_000}
"""A file with more is not decoded: a small file may have very many. JPEG is decoded at a reduced size."""

JPEG_COST = 0.25
"""Time for a pixel of a JPEG, beside one of the others."""

FORMATS = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG", b"GIF8": "GIF"}
"""First bytes of a file → its format. Others are not decoded: files come from other machines."""


@dataclass
class Budget:
    """Bounds the time that the pictures of one cell take: some 0.7 s.

    Attributes
    ----------
    pixels : float
        Those that may still be decoded.
    """

    pixels: float = 32_000_000

    def takes(self, nb_pixels: float) -> bool:
        """Return whether this number may still be decoded, and count it."""
        if nb_pixels > self.pixels:
            return False
        self.pixels -= nb_pixels
        return True


def pixels_of(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any] | None:
    """The array as height × width, or height × width × 3 or 4, where it can be a picture; None otherwise."""
    dtype = array.dtype
    if dtype not in (np.uint8, np.uint16, np.bool_) and not np.issubdtype(dtype, np.floating):
        return None
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = np.moveaxis(array, 0, 2)  # as torch has it
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    coloured = array.ndim == 3 and array.shape[2] in (3, 4)
    if not (coloured or (array.ndim == 2 and not np.issubdtype(dtype, np.floating))):
        return None  # a matrix of floats is seldom a picture
    height, width = array.shape[:2]
    return array if min(height, width) >= LEAST and max(height, width) <= 16 * min(height, width) else None


def looks_like_image(element: Any) -> bool:
    """Whether there is a picture of this element, as far as its dtype, shape and first bytes tell."""
    array = element.array
    return pixels_of(array) is not None or _format_of(array) is not None


def _format_of(array: np.ndarray[Any, Any]) -> str | None:
    if array.dtype != np.uint8 or array.ndim != 1:
        return None
    first = array[:8].tobytes()
    return next((name for magic, name in FORMATS.items() if first.startswith(magic)), None)


def thumbnail(element: Any, size: int = SIZE, budget: Budget | None = None) -> str | None:
    """A picture of the element as a data: address; None where it is no image, or a file that Pillow cannot read.

    There is none of a file with too many pixels, for itself or for what is left of the budget.

    Raises
    ------
    ImportError
        Pillow is not installed.
    """
    array = element.array
    pixels = pixels_of(array)
    if pixels is not None:
        return _address(_of_pixels(pixels, size), size)
    name = _format_of(array)
    return None if name is None else _of_file(array, name, size, budget or Budget())


def _of_pixels(pixels: np.ndarray[Any, Any], size: int) -> Image:
    from PIL import Image

    step = max(1, max(pixels.shape[:2]) // (2 * size))
    pixels = pixels[::step, ::step]  # the rest is not read
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8) * 255
    elif pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    elif pixels.dtype != np.uint8:
        with np.errstate(all="ignore"):
            pixels = (np.nan_to_num(np.clip(pixels, 0, 1)) * 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels))


def _of_file(array: np.ndarray[Any, Any], name: str, size: int, budget: Budget) -> str | None:
    from PIL import Image

    try:
        with (
            warnings.catch_warnings(action="ignore"),  # of many pixels, which are refused, and of odd files
            Image.open(io.BytesIO(memoryview(array)), formats=[name]) as image,
        ):
            nb_pixels = image.width * image.height
            if nb_pixels > MOST_PIXELS[name] or not budget.takes(nb_pixels * (JPEG_COST if name == "JPEG" else 1)):
                return None
            image.draft("RGB", (2 * size, 2 * size))  # JPEG: decodes a smaller one
            return _address(image.convert("RGBA" if "A" in image.mode or name == "GIF" else "RGB"), size)
    except Exception:
        return None  # a file that is cut, or only looks like one: Pillow raises errors of many types


def _address(image: Image, size: int) -> str:
    image.thumbnail((size, size))
    kind, options = ("jpeg", {"quality": 85}) if image.mode == "RGB" else ("png", {})
    image.save(file := io.BytesIO(), kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
