"""The demo's photographs: 512 JPEG files, made once from pictures in Python packages, and cached for the user.

The twelve originals are part of scikit-image, scikit-learn and matplotlib, so nothing is downloaded. Each photograph is
a crop of an original, possibly mirrored, with a slightly changed exposure. It is resampled to about a megapixel and
encoded at the JPEG quality that gives its size. Sizes are spread over 220 to 310 KB, like those of a camera, and the
total is adjusted to 137 MB.

The same seed gives the same files for the same version of Pillow. The work is divided into shards, each with a random
stream and a share of the bytes, so that the result does not depend on the number of processes.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import multiprocessing
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from aiflow._terminal.extras import require
from aiflow._terminal.interrupts import interrupts_blocked

if TYPE_CHECKING:
    from PIL.Image import Image

RECIPE = 1  # increment it if the pictures of a seed change
NB_PHOTOS = 512
TOTAL_BYTES = 137_000_000
SMALLEST, LARGEST = 220_000, 310_000  # bytes of a file, inclusive
NB_SHARDS = 32
INDEX = "index.json"

# The originals: package, path in it. All are photographs (ihc.png through a microscope, retina.jpg of an eye).
ORIGINALS = (
    ("sklearn", "datasets/images/china.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
    ("skimage", "data/astronaut.png"),
    ("skimage", "data/coffee.png"),
    ("skimage", "data/chelsea.png"),
    ("skimage", "data/rocket.jpg"),
    ("skimage", "data/motorcycle_left.png"),
    ("skimage", "data/motorcycle_right.png"),
    ("skimage", "data/hubble_deep_field.jpg"),
    ("skimage", "data/retina.jpg"),
    ("skimage", "data/ihc.png"),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
)

# Width and height of the results, in pixels.
FORMATS = ((1152, 864), (1200, 800), (1280, 720), (960, 960), (864, 1080))


@dataclass(frozen=True)
class Photo:
    """One file of the set: its name, size in bytes, SHA-256, and original."""

    name: str
    nbytes: int
    sha256: str
    original: str


@dataclass(frozen=True)
class PhotoSet:
    """A directory of photographs, and its expected content."""

    directory: Path
    photos: tuple[Photo, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(photo.nbytes for photo in self.photos)

    def read(self) -> Iterator[tuple[Photo, bytes]]:
        """Yield each photograph with its bytes, in order.

        Raises
        ------
        OSError
            A file cannot be read.
        ValueError
            A file differs from the index.
        """
        for photo in self.photos:
            content = (self.directory / photo.name).read_bytes()
            if hashlib.sha256(content).hexdigest() != photo.sha256:
                raise ValueError(f"{self.directory / photo.name} differs from the cached file")
            yield photo, content

    def intact(self) -> bool:
        """Return whether every file is present and complete. This reads all of them."""
        try:
            return all(True for _ in self.read())
        except (OSError, ValueError):
            return False


def cache_root() -> Path:
    """Return ``$XDG_CACHE_HOME/aiflow``, or ``~/.cache/aiflow`` (a relative XDG_CACHE_HOME is ignored)."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "aiflow"


def load(directory: Path) -> PhotoSet | None:
    """Read the index in `directory`. Return None if there is no usable one."""
    try:
        index = json.loads((directory / INDEX).read_text("utf-8"))
        return PhotoSet(directory, tuple(Photo(**row) for row in index["photos"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def photo_set(
    root: Path | None = None,
    *,
    seed: int = 2024,
    nb_photos: int = NB_PHOTOS,
    total_bytes: int = TOTAL_BYTES,
    progress: Callable[[int], None] = lambda _: None,
) -> PhotoSet:
    """Return the cached photographs. Create them first if they are missing or damaged.

    Parameters
    ----------
    root : Path, optional
        The cache directory; default :func:`cache_root`.
    seed : int
        Seed of the set. The same seed gives the same files for one version of Pillow.
    nb_photos, total_bytes : int
        Number of photographs, and their total size (within 1 MB).
    progress : callable
        Called repeatedly with the number of photographs created so far.

    Returns
    -------
    PhotoSet

    Raises
    ------
    MissingExtraError
        A package of the extra ``demo`` is not installed.
    OSError
        The cache cannot be written.
    """
    root = cache_root() if root is None else root
    directory = root / f"photos-v{RECIPE}-seed{seed}-{nb_photos}x{total_bytes}"
    cached = load(directory)
    if cached is not None and len(cached.photos) == nb_photos and cached.intact():
        return cached

    root.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=".photos-", dir=root))
    try:
        photos = _make_all(fresh, seed, nb_photos, total_bytes, progress)
        (fresh / INDEX).write_text(json.dumps({"photos": [asdict(photo) for photo in photos]}, indent=1), "utf-8")
        fresh.chmod(0o755)
        _publish(fresh, directory)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return PhotoSet(directory, tuple(photos))


def _publish(fresh: Path, directory: Path) -> None:
    """Rename `fresh` to `directory` in one step. Move a damaged set away; keep a set of a concurrent process."""
    try:
        fresh.rename(directory)
    except OSError:
        standing = load(directory)
        if standing is not None and standing.intact():
            return
        grave = Path(tempfile.mkdtemp(prefix=".photos-", dir=directory.parent))
        try:
            directory.rename(grave / "damaged")
            fresh.rename(directory)
        finally:
            shutil.rmtree(grave, ignore_errors=True)


def _make_all(
    directory: Path, seed: int, nb_photos: int, total_bytes: int, progress: Callable[[int], None]
) -> list[Photo]:
    require("PIL", "skimage", "sklearn", "matplotlib")
    nb_shards = min(NB_SHARDS, nb_photos)
    edges = [nb_photos * shard // nb_shards for shard in range(nb_shards + 1)]
    nb_cores = len(os.sched_getaffinity(0))
    made: dict[int, list[Photo]] = {}
    with ProcessPoolExecutor(min(nb_cores, nb_shards), multiprocessing.get_context("spawn")) as pool:
        shards = {}
        with interrupts_blocked():  # submitting starts the processes
            for first, last in pairwise(edges):
                nbytes = total_bytes * last // nb_photos - total_bytes * first // nb_photos
                shards[pool.submit(make_shard, directory, seed, first, last, nbytes)] = first
        try:
            for shard in as_completed(shards):
                made[shards[shard]] = shard.result()
                progress(sum(map(len, made.values())))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return [photo for first in sorted(made) for photo in made[first]]


def make_shard(directory: Path, seed: int, first: int, last: int, nbytes: int) -> list[Photo]:
    """Create photographs `first` to `last` - 1, of about `nbytes` in total, and write them to `directory`."""
    dice = random.Random(f"aiflow {RECIPE} {seed} {first}")
    photos = []
    qualities = dict.fromkeys(ORIGINALS, 94)  # of the last photograph of each original, tried first
    for number in range(first, last):
        mean = nbytes / (last - number)  # remaining bytes per photograph
        target = round(min(max(mean * dice.uniform(0.87, 1.13), SMALLEST * 1.04), LARGEST * 0.96))
        original = ORIGINALS[(number * 5 + dice.randrange(2)) % len(ORIGINALS)]
        content, qualities[original] = _photograph(original, dice, target, qualities[original])
        name = f"{number:04d}-{Path(original[1]).stem.replace('_', '-')}.jpg"
        (directory / name).write_bytes(content)
        nbytes -= len(content)
        photos.append(Photo(name, len(content), hashlib.sha256(content).hexdigest(), "/".join(original)))
    return photos


def original_path(package: str, path: str) -> Path:
    """Return the path of a file of an installed package, without importing the package, which can take seconds."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        require(package)
        raise ModuleNotFoundError(package)
    return Path(spec.origin).parent / path


@lru_cache(maxsize=len(ORIGINALS))
def _open_original(package: str, path: str) -> Image:
    from PIL import Image

    with Image.open(original_path(package, path)) as image:
        return image.convert("RGB")


def _photograph(original: tuple[str, str], dice: random.Random, target: int, quality: int) -> tuple[bytes, int]:
    """Create a photograph and encode it to about `target` bytes, trying `quality` first. Return it and its quality."""
    from PIL import Image

    source = _open_original(*original)
    width, height = dice.choice(FORMATS)
    # The largest box of this format in the original, reduced by a zoom, at a random position.
    scale = min(source.width / width, source.height / height) * dice.uniform(0.6, 1.0)
    left = dice.uniform(0, source.width - width * scale)
    top = dice.uniform(0, source.height - height * scale)
    box = (left, top, left + width * scale, top + height * scale)
    mirrored = dice.random() < 0.5
    exposure = _exposure_curve(dice)
    while True:
        image = source.resize((width, height), Image.Resampling.BICUBIC, box=box).point(exposure)
        if mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        content, quality = _encode(image, target, quality)
        miss = target / len(content)
        if 0.9 < miss < 1.12 and SMALLEST <= len(content) <= LARGEST:
            return content, quality
        width, height = round(width * miss**0.6), round(height * miss**0.6)  # no quality fits: resize


def _exposure_curve(dice: random.Random) -> list[int]:
    """Return a table for ``Image.point``: a gamma for the exposure, and a gain per colour for the light's warmth."""
    gamma = math.exp(dice.uniform(-0.25, 0.25))
    warmth = dice.uniform(-0.06, 0.06)
    curve = [255 * (level / 255) ** gamma for level in range(256)]
    return [min(255, round(level * gain)) for gain in (1 + warmth, 1.0, 1 - warmth) for level in curve]


def _encode(image: Image, target: int, quality: int) -> tuple[bytes, int]:
    """Find the integer JPEG quality whose size is nearest to `target`. The size grows about exponentially with it."""
    encoded: dict[int, bytes] = {}
    while quality not in encoded and len(encoded) < 6:
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=quality)
        encoded[quality] = stream.getvalue()
        miss = math.log(target / len(encoded[quality]))
        if abs(miss) < 0.04:
            break
        growth = 0.11 if quality >= 93 else 0.07  # per step, measured on these originals
        quality = min(99, max(60, quality + (round(miss / growth) or (1 if miss > 0 else -1))))
    best = min(encoded, key=lambda quality: abs(len(encoded[quality]) - target))
    return encoded[best], best
