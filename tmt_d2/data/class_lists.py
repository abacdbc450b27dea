"""Class lists of models and data sets: names and colors in the order of train ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

MAX_CLASSES = 254  # train ids are bytes, of which 254 and 255 are reserved (see ``label_spaces``)
NAMES_SHOWN = 4
LEVELS = 9  # per channel of generated colors
BLACK, WHITE = (0, 0, 0), (255, 255, 255)  # of ignored pixels and the page

RGB = tuple[int, int, int]


@dataclass(frozen=True)
class ClassList:
    """
    Attributes:
        names: 1 to ``MAX_CLASSES`` different names; a class's position is its train id.
        colors: RGB, 0 to 255, of each class.
    """

    names: tuple[str, ...]
    colors: tuple[RGB, ...]

    def __len__(self) -> int:
        return len(self.names)

    def __str__(self) -> str:
        """Return, e.g., ``11 classes (sky, building, pole, road, ...)``."""
        more = ", ..." if len(self) > NAMES_SHOWN else ""
        return f"{len(self)} class{'es' if len(self) > 1 else ''} ({', '.join(self.names[:NAMES_SHOWN])}{more})"

    def palette(self) -> np.ndarray:
        """Return a (256, 3) uint8 table, train id -> RGB; black where there is no class."""
        table = np.zeros((256, 3), np.uint8)
        table[: len(self)] = self.colors
        return table

    def legend(self, train_ids: Sequence[int] | np.ndarray) -> list[tuple[str, RGB]]:
        """Return (name, color) of these classes, each once, in the order of their ids."""
        return [(self.names[i], self.colors[i]) for i in np.unique(train_ids)]


def with_colors(names: Sequence[str], given: Mapping[str, RGB]) -> ClassList:
    """Return a class list with the given colors, and generated ones for the other names."""
    generated = iter(_distinct(list(given.values()), sum(name not in given for name in names)))
    return ClassList(tuple(names), tuple(given[name] if name in given else next(generated) for name in names))


def unnamed(count: int) -> ClassList:
    """Return a class list for a model of which only the number of classes is known."""
    return with_colors([f"class {index}" for index in range(count)], {})


def _distinct(taken: Sequence[RGB], count: int) -> list[RGB]:
    """Return ``count`` colors, each the farthest from those before it, from ``taken``, black and white.

    The distance is Riemersma's "redmean" approximation of perceived difference (compuphase.com/cmetric.htm), times 512
    in whole numbers, so that it is equal on every machine.
    """
    levels = np.linspace(0, 255, LEVELS).astype(np.int64)
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)

    def distance(color: RGB) -> np.ndarray:
        red = candidates[:, 0] + color[0]  # twice the mean
        squares = (candidates - np.array(color)) ** 2
        return (1024 + red) * squares[:, 0] + 2048 * squares[:, 1] + (1534 - red) * squares[:, 2]

    nearest = np.minimum(distance(BLACK), distance(WHITE))
    for color in taken:
        nearest = np.minimum(nearest, distance(color))
    chosen: list[RGB] = []
    for _ in range(count):
        red, green, blue = candidates[nearest.argmax()].tolist()
        chosen.append((red, green, blue))
        nearest = np.minimum(nearest, distance(chosen[-1]))
    return chosen
