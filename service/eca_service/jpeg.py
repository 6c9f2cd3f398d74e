"""JPEG straight into an array by libjpeg-turbo, scaled while it is decoded; the only module that knows simplejpeg.

Where the package has no wheel, Pillow does the work.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eca_service.geometry import Size

try:
    import simplejpeg
except ImportError:
    simplejpeg = None


def decode_scaled(data: bytes, size: Size, shrink: int) -> NDArray[np.uint8] | None:
    """RGB pixels, uint8 [ceil(h / shrink), ceil(w / shrink), 3], of a JPEG of `size` (width, height).

    `shrink` is 1, 2, 4 or 8: a block of 8 x 8 is then computed as the mean of its parts. The GIL is released meanwhile.
    None where the package is missing or the file not wholly in order: Pillow reads it then, or says what is wrong.
    """
    if simplejpeg is None:
        return None
    width, height = (-(-side // shrink) for side in size)
    try:
        if simplejpeg.decode_jpeg_header(data)[:2] != size[::-1]:
            return None  # two readers differ over its header: no memory is taken on its word
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
            data, "RGB", min_height=height, min_width=width, min_factor=float(shrink)
        )
    except ValueError:
        return None
    return pixels if pixels.shape == (height, width, 3) else None
