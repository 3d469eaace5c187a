"""Cut 64 pictures from photographs that come with Python packages. Usage: python tests/nic/images.py OUTPUT.npz."""

from __future__ import annotations

import contextlib
import random
import sys

import numpy as np
from PIL import Image

from aiflow._samples.photos import ORIGINALS, original_path
from aiflow._terminal.extras import MissingExtraError

NB_IMAGES = 64
SIZE = (320, 280)  # 268,800 bytes each, a picture of the published experiments


def main() -> None:
    """Write the pictures, an array each."""
    dice = random.Random(14)
    originals = []
    for package, path in ORIGINALS:
        with contextlib.suppress(MissingExtraError, ModuleNotFoundError):
            originals.append(Image.open(original_path(package, path)).convert("RGB"))
    pictures = {}
    for number in range(NB_IMAGES):
        image = originals[number % len(originals)]
        left, top = (dice.randrange(have - want + 1) for have, want in zip(image.size, SIZE, strict=True))
        pictures[f"image-{number:02}"] = np.asarray(image.crop((left, top, left + SIZE[0], top + SIZE[1])))
    np.savez(sys.argv[1], **pictures)


if __name__ == "__main__":
    main()
