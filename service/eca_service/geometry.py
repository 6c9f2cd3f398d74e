"""Where things lie in an image: what the recipe keeps of it, upright and in the file's own pixels."""

from __future__ import annotations

from dataclasses import dataclass

from eca_service.contract import Preprocessing

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in pixels, from the top left corner; its edges may lie within a pixel."""

    left: float
    top: float
    right: float
    bottom: float

    def shrunk(self, x: int, y: int) -> Box:
        """The same part of the picture in an image that is so many times narrower and lower."""
        return Box(self.left / x, self.top / y, self.right / x, self.bottom / y)


@dataclass(frozen=True, slots=True)
class Placement:
    """The recipe for one image: its size in pixels once resized, and the corner at which the crop begins."""

    width: int
    height: int
    left: int
    top: int


def placement(size: Size, recipe: Preprocessing) -> Placement:
    """How an upright image of `size` (width, height) is resized and cropped."""
    scale = recipe.resize / min(size)
    width = max(recipe.crop, round(size[0] * scale))
    height = max(recipe.crop, round(size[1] * scale))
    return Placement(width, height, (width - recipe.crop) // 2, (height - recipe.crop) // 2)


def crop_box(size: Size, recipe: Preprocessing) -> Box:
    """What the network sees of an upright image of `size` (width, height), in that image's pixels."""
    placed = placement(size, recipe)
    x, y = size[0] / placed.width, size[1] / placed.height
    right, bottom = placed.left + recipe.crop, placed.top + recipe.crop
    return Box(placed.left * x, placed.top * y, min(right * x, size[0]), min(bottom * y, size[1]))  # however it rounds


def as_stored(box: Box, size: Size, orientation: int) -> Box:
    """The same part of the picture in the file's own pixels, before EXIF's `orientation` (1 to 8) turned them.

    `box` lies in the upright image, whose `size` is (width, height).
    """
    width, height = size
    corners = ((box.left, box.top), (box.right, box.bottom))
    points = [
        {
            2: (width - x, y),
            3: (width - x, height - y),
            4: (x, height - y),
            5: (y, x),
            6: (y, width - x),
            7: (height - y, width - x),
            8: (height - y, x),
        }.get(orientation, (x, y))
        for x, y in corners
    ]
    (x0, y0), (x1, y1) = points
    return Box(min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
