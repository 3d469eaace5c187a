"""The demo's photographs: 512 JPEG files, made once from pictures that Python packages ship, kept in the user's cache.

The twelve originals come in the wheels of scikit-image, scikit-learn and matplotlib, so nothing is downloaded. Each
photograph is a crop of one of them, mirrored or not, with its exposure changed a little, resampled to about a megapixel
and encoded at the JPEG quality that meets its size. Sizes spread over 220 to 310 KB as a camera's would, and a running
balance makes the whole come to 137 MB.

The same seed gives the same files for the same Pillow. Work is cut into shards with a random stream and a share of the
bytes each, so the result does not depend on how many processes made it.
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

RECIPE = 1  # raise it when the pictures a seed gives change
NB_PHOTOS = 512
TOTAL_BYTES = 137_000_000
SMALLEST, LARGEST = 220_000, 310_000  # bytes a file, both allowed
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
    """One file of the set: its name, its size in bytes, the SHA-256 of its content, the original it was cut from."""

    name: str
    nbytes: int
    sha256: str
    original: str


@dataclass(frozen=True)
class PhotoSet:
    """A directory of photographs and what ought to be in it."""

    directory: Path
    photos: tuple[Photo, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in all files."""
        return sum(photo.nbytes for photo in self.photos)

    def read(self) -> Iterator[tuple[Photo, bytes]]:
        """Each photograph with its bytes, in order.

        Raises
        ------
        OSError
            A file can't be read.
        ValueError
            A file is not what the index says.
        """
        for photo in self.photos:
            content = (self.directory / photo.name).read_bytes()
            if hashlib.sha256(content).hexdigest() != photo.sha256:
                raise ValueError(f"{self.directory / photo.name} is not the file that was cached")
            yield photo, content

    def intact(self) -> bool:
        """Whether every file is there and whole (reads them all)."""
        try:
            return all(True for _ in self.read())
        except (OSError, ValueError):
            return False


def cache_root() -> Path:
    """Give ``$XDG_CACHE_HOME/aiflow``, or ``~/.cache/aiflow`` (a relative XDG_CACHE_HOME does not count)."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "aiflow"


def load(directory: Path) -> PhotoSet | None:
    """Read the index in `directory`; None when there is no usable one."""
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
    """Give the cached photographs; make them first when they aren't there, or are damaged.

    Parameters
    ----------
    root : Path, optional
        The cache directory; default :func:`cache_root`.
    seed : int
        Names the set. The same seed gives the same files under one version of Pillow.
    nb_photos, total_bytes : int
        How many, and how many bytes in all (within 1 MB).
    progress : callable
        Called with the number of photographs made, now and then, while they are being made.

    Returns
    -------
    PhotoSet

    Raises
    ------
    MissingExtraError
        A package of the extra ``demo`` is not installed.
    OSError
        The cache can't be written.
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
    """Rename `fresh` to `directory` in one step. A damaged set there is moved away; a set made meanwhile is as good."""
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
    """Make photographs `first` to `last` - 1, about `nbytes` in all, and write them to `directory`."""
    dice = random.Random(f"aiflow {RECIPE} {seed} {first}")
    photos = []
    qualities = dict.fromkeys(ORIGINALS, 94)  # that the last photograph of each original needed: the first to be tried
    for number in range(first, last):
        mean = nbytes / (last - number)  # what is left to spend on each
        target = round(min(max(mean * dice.uniform(0.87, 1.13), SMALLEST * 1.04), LARGEST * 0.96))
        original = ORIGINALS[(number * 5 + dice.randrange(2)) % len(ORIGINALS)]
        content, qualities[original] = _photograph(original, dice, target, qualities[original])
        name = f"{number:04d}-{Path(original[1]).stem.replace('_', '-')}.jpg"
        (directory / name).write_bytes(content)
        nbytes -= len(content)
        photos.append(Photo(name, len(content), hashlib.sha256(content).hexdigest(), "/".join(original)))
    return photos


def original_path(package: str, path: str) -> Path:
    """Where an installed package keeps the file; found without importing the package, which can take seconds."""
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
    """Make a photograph and encode it to about `target` bytes, trying `quality` first; gives its quality too."""
    from PIL import Image

    source = _open_original(*original)
    width, height = dice.choice(FORMATS)
    # The largest box of this format in the original, less a zoom; then somewhere in it.
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
        width, height = round(width * miss**0.6), round(height * miss**0.6)  # no quality fits: other pixels


def _exposure_curve(dice: random.Random) -> list[int]:
    """Make a table for ``Image.point``: a gamma for the exposure, and a gain for each colour for the light's warmth."""
    gamma = math.exp(dice.uniform(-0.25, 0.25))
    warmth = dice.uniform(-0.06, 0.06)
    curve = [255 * (level / 255) ** gamma for level in range(256)]
    return [min(255, round(level * gain)) for gain in (1 + warmth, 1.0, 1 - warmth) for level in curve]


def _encode(image: Image, target: int, quality: int) -> tuple[bytes, int]:
    """Find the JPEG encoding nearest `target` bytes among whole qualities. Size grows with it about exponentially."""
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
