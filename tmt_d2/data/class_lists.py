"""What a model may predict: classes with names and colours, in the order of their train ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

MAX_CLASSES = 254  # train ids are stored in a byte, whose last two values mean something else (see ``label_spaces``)
NAMES_SHOWN = 4
LEVELS = 9  # of each channel, of which colours are generated
BLACK, WHITE = (0, 0, 0), (255, 255, 255)  # what ignored pixels and the page have

RGB = tuple[int, int, int]


@dataclass(frozen=True)
class ClassList:
    """
    Attributes:
        names: 1 to ``MAX_CLASSES``, all different; a class's position is its train id.
        colors: RGB, 0 to 255, of each.
    """

    names: tuple[str, ...]
    colors: tuple[RGB, ...]

    def __len__(self) -> int:
        return len(self.names)

    def __str__(self) -> str:
        """Such as ``11 classes (sky, building, pole, road, ...)``."""
        more = ", ..." if len(self) > NAMES_SHOWN else ""
        return f"{len(self)} class{'es' if len(self) > 1 else ''} ({', '.join(self.names[:NAMES_SHOWN])}{more})"

    def palette(self) -> np.ndarray:
        """(256, 3) uint8: train id -> RGB; black where there is no class."""
        table = np.zeros((256, 3), np.uint8)
        table[: len(self)] = self.colors
        return table

    def legend(self, train_ids: Sequence[int] | np.ndarray) -> list[tuple[str, RGB]]:
        """(name, colour) of these classes, each once, in the order of their ids."""
        return [(self.names[i], self.colors[i]) for i in np.unique(train_ids)]


def coloured(names: Sequence[str], given: Mapping[str, RGB]) -> ClassList:
    """A class list with the colours that are given, and for other names generated ones, always the same."""
    generated = iter(_distinct(list(given.values()), sum(name not in given for name in names)))
    return ClassList(tuple(names), tuple(given[name] if name in given else next(generated) for name in names))


def unnamed(count: int) -> ClassList:
    """For a model of which nothing but the number of its classes is known."""
    return coloured([f"class {index}" for index in range(count)], {})


def _distinct(taken: Sequence[RGB], count: int) -> list[RGB]:
    """One after the other the colour that is farthest from all before it, and from black and white.

    Distance: Riemersma's "redmean" approximation of perceived difference (compuphase.com/cmetric.htm), times 512, in
    whole numbers, so that it is the same everywhere.
    """
    levels = np.linspace(0, 255, LEVELS).astype(np.int64)
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)

    def distance(colour: RGB) -> np.ndarray:
        red = candidates[:, 0] + colour[0]  # twice the mean
        squares = (candidates - np.array(colour)) ** 2
        return (1024 + red) * squares[:, 0] + 2048 * squares[:, 1] + (1534 - red) * squares[:, 2]

    nearest = np.minimum(distance(BLACK), distance(WHITE))
    for colour in taken:
        nearest = np.minimum(nearest, distance(colour))
    chosen: list[RGB] = []
    for _ in range(count):
        red, green, blue = candidates[nearest.argmax()].tolist()
        chosen.append((red, green, blue))
        nearest = np.minimum(nearest, distance(chosen[-1]))
    return chosen
