"""Reading image files as RGB whatever they hold, with errors that say what to do."""

import os
import struct
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from puma_plugin.datasets.errors import DatasetError

# What Pillow's decoders raise on a file that is damaged or no image at all.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_BITS_PER_SAMPLE = 258  # a TIFF's tag


def as_rgb(image: Image.Image) -> Image.Image:
    """The picture with 8 bits for red, green and blue; of more bits the upper 8, as Pillow itself reads colours of 16.

    Pixels of 32 bits are taken if their values are those of 8. Give pictures as they were opened: copies and crops have
    forgotten how many of their bits are used.

    Raises:
        ValueError: other pixels of 32 bits, of which nobody knows which value is white.
    """
    bits = _grey_bits(image)
    if bits > 8:  # Pillow would clip them: all above 255 would be white
        image = Image.fromarray((np.asarray(image) >> (bits - 8)).astype(np.uint8))
    return image.convert("RGB")


def _grey_bits(image: Image.Image) -> int:
    """Bits of a pixel's value.

    Raises:
        ValueError: the values do not tell.
    """
    if image.mode.startswith("I;16"):
        # Of a file with 12 bits Pillow makes a picture of 16, without scaling the values.
        tag = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))
        return int(tag[0] if isinstance(tag, tuple) else tag)
    # Grey files of 16 bits that Pillow opens with 32: PNGs in earlier versions, and PGMs.
    if image.mode == "I" and image.format in ("PNG", "PPM"):
        return 16
    if image.mode in ("I", "F"):
        values = np.asarray(image)
        low, high = values.min(), values.max()
        # Fractions up to 1 mean something else than 8 bits.
        whole = image.mode == "I" or (not 0 < high <= 1 and np.array_equal(values, np.floor(values)))
        if not (0 <= low <= high <= 255 and whole):
            raise ValueError(
                f"its values (Pillow's mode {image.mode}) go from {low} to {high}, so it is not known which is white; "
                "save it with 8 or unsigned 16 bits"
            )
    return 8


def read_image(path: str, dataset: str) -> Image.Image:
    """The image as RGB, see `as_rgb`; of an animation the first picture.

    Args:
        dataset: how error messages call the dataset.

    Raises:
        DatasetError: naming the dataset and the file, if it is missing or cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            return as_rgb(image)
    except FileNotFoundError as error:
        raise DatasetError(
            f"{dataset}: {path} does not exist (any more); restore it, or construct the dataset again so that it is "
            "noticed"
        ) from error
    except _DECODE_ERRORS as error:
        raise DatasetError(
            f"{dataset}: {path} cannot be read as an image ({error}); replace the file, or pass bad_images='skip' "
            "(--data.bad_images skip) to leave such images out; `puma datasets verify --open-images` finds them all"
        ) from error


def defect(path: str) -> str | None:
    """Why `read_image` would refuse the file, or None. JPEGs are decoded at an eighth of their size."""
    try:
        with Image.open(path) as image:
            image.draft("RGB", (32, 32))
            image.load()
            _grey_bits(image)
    except _DECODE_ERRORS as error:
        return f"{type(error).__name__}: {error}"
    return None


def find_defects(
    paths: Sequence[str], workers: int | None = None, progress: Callable[[int], None] | None = None
) -> dict[int, str]:
    """Decode every file and return the reason for each place in ``paths`` that cannot be read.

    Args:
        workers: threads (Pillow decodes outside the interpreter lock); None: one per processor, at most 16.
        progress: called with the number of files done, now and then.
    """
    threads = workers or min(16, os.cpu_count() or 1)
    defects = {}
    step = 64 * threads
    with ThreadPoolExecutor(threads) as pool:
        # In portions, so that a million paths never wait in the pool's queue together.
        for start in range(0, len(paths), step):
            stop = min(start + step, len(paths))
            for index, reason in enumerate(pool.map(defect, [paths[i] for i in range(start, stop)]), start):
                if reason is not None:
                    defects[index] = reason
            if progress is not None:
                progress(stop)
    return defects
