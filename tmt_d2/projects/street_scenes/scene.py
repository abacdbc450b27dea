"""Layout of one street as plain numbers.

The layout depends only on how a domain builds its streets (``StreetStyle``), not on colors or light.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

GROUND_FLOOR = 1.0  # height of base and roof of a house, besides its stories
STORY = 3.1
_BLOCKS_START, _BLOCKS_END = 2.0, 95.0  # z; the start is nearer than anything in the image
_PARKING_STRIP, _SHOULDER = 2.3, 0.5

Range = tuple[float, float]
Size = tuple[float, float, float]  # along x, height, along z

_AMOUNTS = {  # mean number per scene; "parked car" is the share of occupied parking places
    "parked car": 0.7, "moving car": 2.2, "truck": 0.45, "bus": 0.45, "train": 0.4,
    "person": 6.0, "crossing person": 0.5, "bicycle rider": 0.8, "motorcycle rider": 0.8,
    "bicycle": 0.9, "motorcycle": 1.2,
    "tree": 2.0, "lamp": 3.0, "light": 1.6, "sign": 2.4,
}  # fmt: skip
_HEIGHTS = {"park": (4.5, 8.0), "wall": (1.8, 3.0), "fence": (1.6, 2.4)}


@dataclass(frozen=True)
class StreetStyle:
    """Streets and camera of a domain; ranges are (lowest, highest) of a uniform distribution.

    Attributes:
        camera_height: meters.
        horizon: row, as a share of the image's height.
        focal: focal length over image width, for a 2:1 image.
        lanes: number of lanes, both directions together.
        lane_width, sidewalk: meters.
        floors: stories of a building.
        blocks: relative frequency of "building", "park", "wall" and "fence" along the street.
        amounts: kind -> factor on the usual number of things; 0 = never.
        terrain: share of streets with grass verges; 0 = no grass at all.
        parking: share of curbs with parked cars.
    """

    camera_height: Range
    horizon: Range
    focal: Range
    lanes: tuple[int, int]
    lane_width: float
    sidewalk: Range
    floors: tuple[int, int]
    blocks: Mapping[str, float]
    amounts: Mapping[str, float] = field(default_factory=dict)
    terrain: float = 0.6
    parking: float = 0.5

    def amount(self, kind: str) -> float:
        return _AMOUNTS[kind] * self.amounts.get(kind, 1.0)


@dataclass(frozen=True)
class Thing:
    """One thing on the street. Its left near bottom corner is (x, 0, z); ``seed`` determines its appearance."""

    kind: str
    x: float
    z: float
    width: float  # along x
    height: float
    length: float  # along z
    seed: int
    side: int = 1  # -1 left of the camera, 1 right
    across: bool = False  # it faces along x, not along z

    @property
    def middle(self) -> float:
        return self.x + self.width / 2


@dataclass(frozen=True)
class Street:
    """Borders on the ground in meters; all pairs except ``junction`` are x of the left and the right border."""

    road: Range
    lanes: Range  # cars park between these and the curb
    lane_width: float
    parking: tuple[bool, bool]  # room for parked cars on the left, on the right
    walk: Range  # outer borders of the sidewalks
    verge: Range  # outer borders of the grass verges; equal to ``walk`` without grass
    junction: Range | None  # z of the near and far curb of a crossing street
    rails: Range | None  # of a tram track

    @property
    def lane_count(self) -> int:
        return round((self.lanes[1] - self.lanes[0]) / self.lane_width)

    def in_junction(self, z: float, margin: float = 0.0) -> bool:
        return self.junction is not None and self.junction[0] - margin < z < self.junction[1] + margin


@dataclass(frozen=True)
class Scene:
    """A street with the camera at x = 0; ``things`` are in painting order, far to near."""

    camera_height: float
    horizon: float  # share of the image's height
    focal: float  # over the width of a 2:1 image
    vanishing_x: float  # share of the image's width
    street: Street
    things: tuple[Thing, ...]


def lay_out(style: StreetStyle, rng: np.random.Generator) -> Scene:
    """Draw one street and the things on it."""
    street = _street(style, rng)
    placing = _Placing(style, street, rng)
    blocks = [*placing.blocks(-1), *placing.blocks(1)]
    placing.big_vehicles()
    placing.cars()
    placing.two_wheelers()
    placing.people()
    placing.posts_and_trees()
    far = street.junction[0] if street.junction else 0.0
    layers = [(0, blocks), (1, placing.inner), (2, placing.crossing)]
    painting = sorted(
        ((layer, thing) for layer, things in layers for thing in things),
        # A house never hides things between the two fronts, but it may hide things in the side street.
        key=lambda entry: (entry[1].z < far and entry[0] != 2, entry[0], -entry[1].z),
    )
    return Scene(
        camera_height=rng.uniform(*style.camera_height),
        horizon=rng.uniform(*style.horizon),
        focal=rng.uniform(*style.focal),
        vanishing_x=rng.uniform(0.42, 0.58),
        street=street,
        things=tuple(thing for _, thing in painting),
    )


def _street(style: StreetStyle, rng: np.random.Generator) -> Street:
    count = int(rng.integers(style.lanes[0], style.lanes[1] + 1))
    own = int(rng.integers(0, max(count // 2, 1)))  # the lane of the camera, counted from the right
    right = (own + 0.5) * style.lane_width
    lanes = (right - count * style.lane_width, right)
    parking = (bool(rng.random() < style.parking), bool(rng.random() < style.parking))
    shoulders = [_PARKING_STRIP if room else _SHOULDER for room in parking]
    road = (lanes[0] - shoulders[0], lanes[1] + shoulders[1])
    walk = (road[0] - rng.uniform(*style.sidewalk), road[1] + rng.uniform(*style.sidewalk))
    grass = rng.uniform(2.0, 6.0) if rng.random() < style.terrain else 0.0
    near = rng.uniform(16.0, 36.0)
    junction = (near, near + rng.uniform(8.0, 12.0)) if rng.random() < 0.4 else None
    rails = None
    if rng.random() < style.amount("train"):
        middle = lanes[0] + (0.5 if own < count - 1 else count - 0.5) * style.lane_width
        rails = (middle - 0.75, middle + 0.75)
    return Street(road, lanes, style.lane_width, parking, walk, (walk[0] - grass, walk[1] + grass), junction, rails)


class _Placing:
    """Places things on a street so that no two solid ones overlap.

    Attributes:
        inner: things between the two house fronts. crossing: things on the crossing street.
    """

    def __init__(self, style: StreetStyle, street: Street, rng: np.random.Generator) -> None:
        self.style, self.street, self.rng = style, street, rng
        self.inner: list[Thing] = []
        self.crossing: list[Thing] = []
        self._occupied: list[tuple[float, float, float, float]] = []  # x from, to; z from, to

    def blocks(self, side: int) -> list[Thing]:
        """House fronts, parks, walls and fences along one side, with a gap at the crossing street."""
        kinds = sorted(self.style.blocks)
        weights = np.array([self.style.blocks[kind] for kind in kinds])
        junction = self.street.junction
        front = self.street.verge[0 if side < 0 else 1]
        things: list[Thing] = []
        z = _BLOCKS_START
        while z < _BLOCKS_END:
            length = float(self.rng.uniform(7.0, 16.0))
            if junction and junction[0] <= z < junction[1]:
                z = junction[1]
            elif junction and z < junction[0]:
                length = min(length, junction[0] - z)
            kind = str(self.rng.choice(kinds, p=weights / weights.sum()))
            height = float(self.rng.uniform(*_HEIGHTS.get(kind, (0.0, 0.0))))
            if kind == "building":
                height = GROUND_FLOOR + STORY * int(self.rng.integers(self.style.floors[0], self.style.floors[1] + 1))
            things.append(self._thing(kind, front, z, (14.0, height, length), side))
            z += length
        return things

    def big_vehicles(self) -> None:
        """Place trams, buses and trucks in their lanes or on the crossing street."""
        street, rng = self.street, self.rng
        if street.rails:
            width = 2.7
            x = sum(street.rails) / 2 - width / 2
            if street.junction and rng.random() < 0.4:
                self._cross("train", rng.uniform(-22.0, -2.0), 2.5, (24.0, 3.6, 2.6))
            elif not x < 0 < x + width:  # not in the camera's own lane
                self._put("train", x, rng.uniform(7.0, 26.0), (width, 3.6, rng.uniform(16.0, 26.0)))
        for kind, (width, height, length) in (("bus", (2.6, 3.1, 10.5)), ("truck", (2.6, 3.5, 8.5))):
            if rng.random() >= self.style.amount(kind):
                continue
            if street.junction and rng.random() < 0.35:
                self._cross(kind, rng.uniform(-10.0, 4.0), 2.0, (length, height, width))
            else:
                x, nearest = self._lane(width)
                self._put(kind, x, rng.uniform(nearest + 3.0, 30.0), (width, height, length))

    def cars(self) -> None:
        """Place moving cars first, then parked ones where there is room."""
        street, rng = self.street, self.rng
        for _ in range(self._count("moving car")):
            size = self._car_size()
            x, nearest = self._lane(size[0])
            self._put("car", x, rng.uniform(nearest, 45.0), size)
        if street.junction and rng.random() < 0.5:
            self._cross("car", rng.uniform(-8.0, 6.0), rng.uniform(1.5, 4.0), (4.4, 1.5, 1.8))
        for side in (0, 1):
            for z in np.arange(rng.uniform(5.0, 9.0), 50.0, 6.0):
                occupied = rng.random() < self.style.amount("parked car")
                if street.parking[side] and occupied and not street.in_junction(z + 2.2, 5.0):
                    size = self._car_size()
                    x = street.road[0] + 0.2 if side == 0 else street.road[1] - 0.2 - size[0]
                    self._put("car", x, float(z), size, gap=0.2)

    def two_wheelers(self) -> None:
        """Place riders at the edge of the road and parked two-wheelers on the sidewalk."""
        for kind in ("bicycle", "motorcycle"):
            for _ in range(self._count(f"{kind} rider")):
                size, across = self._two_wheeler_size(1.75)
                left, right = self.street.lanes[0] + 0.2, self.street.lanes[1] - size[0] + 0.3
                x = left if self.rng.random() < 0.5 else right
                z = self.rng.uniform(6.0, 16.0)
                self._put(f"{kind} with rider", x + self.rng.uniform(-0.4, 0.4), z, size, across=across)
            for _ in range(self._count(kind)):
                size, across = self._two_wheeler_size(1.1)
                offset = self.rng.uniform(0.2, 0.6)
                left, right = self.street.road[0] - size[0] - offset, self.street.road[1] + offset
                x = left if self.rng.random() < 0.5 else right
                self._put(kind, x, self.rng.uniform(6.0, 16.0), size, across=across)

    def people(self) -> None:
        """Place people on the sidewalks, and a few who cross the road."""
        street, rng = self.street, self.rng
        for _ in range(self._count("person")):
            side = int(rng.integers(2))
            x = street.road[side] + (street.walk[side] - street.road[side]) * rng.uniform(0.25, 0.95)
            self._put("person", x - 0.3, rng.uniform(6.0, 24.0), (0.6, rng.uniform(1.55, 1.9), 0.4), gap=0.1)
        for _ in range(self._count("crossing person")):
            x, z = rng.uniform(*street.road), rng.uniform(9.0, 20.0)
            self._put("person", x, z, (0.6, rng.uniform(1.6, 1.9), 0.4), across=True)

    def posts_and_trees(self) -> None:
        """Place posts and trees along the curbs."""
        for kind, z_range, heights in (
            ("lamp", (7.0, 45.0), (5.0, 7.5)),
            ("light", (8.0, 20.0), (3.2, 4.6)),
            ("sign", (7.0, 20.0), (2.6, 3.2)),
            ("tree", (9.0, 60.0), (4.5, 7.5)),
        ):
            for _ in range(self._count(kind)):
                side = int(self.rng.integers(2))
                offset = self.rng.uniform(0.3, 0.7)
                x = self.street.road[side] + (offset if side else -offset)
                z = self.rng.uniform(*z_range)
                if not self.street.in_junction(z):
                    self._put(kind, x, z, (0.2, self.rng.uniform(*heights), 0.2), gap=0.1)

    def _count(self, kind: str) -> int:
        return int(self.rng.poisson(self.style.amount(kind)))

    def _car_size(self) -> Size:
        return self.rng.uniform(1.7, 1.95), self.rng.uniform(1.4, 1.85), self.rng.uniform(3.8, 4.8)

    def _two_wheeler_size(self, height: float) -> tuple[Size, bool]:
        """Return the size, and True if its side is visible."""
        across = bool(self.rng.random() < 0.5)
        return (1.9 if across else 1.25, height, 0.6), across

    def _lane(self, width: float) -> tuple[float, float]:
        """Draw a lane; return x of something ``width`` wide in its middle, and the smallest z there."""
        lane = int(self.rng.integers(self.street.lane_count))
        left = self.street.lanes[0] + lane * self.street.lane_width
        has_camera = left < 0 < left + self.street.lane_width
        return left + (self.street.lane_width - width) / 2, 10.0 if has_camera else 7.0

    def _thing(self, kind: str, x: float, z: float, size: Size, side: int, across: bool = False) -> Thing:
        return Thing(kind, x, z, *size, int(self.rng.integers(2**31)), side, across)

    def _put(self, kind: str, x: float, z: float, size: Size, gap: float = 0.4, across: bool = False) -> None:
        """Place a thing unless the place is occupied."""
        left, right, near, far = x - 0.1, x + size[0] + 0.1, z - gap, z + size[2] + gap
        if any(left < b[1] and b[0] < right and near < b[3] and b[2] < far for b in self._occupied):
            return
        self._occupied.append((left, right, near, far))
        self.inner.append(self._thing(kind, x, z, size, -1 if x + size[0] / 2 < 0 else 1, across))

    def _cross(self, kind: str, x: float, inside: float, size: Size) -> None:
        """Place a thing on the crossing street, ``inside`` meters beyond its near curb."""
        assert self.street.junction is not None
        self.crossing.append(self._thing(kind, x, self.street.junction[0] + inside, size, 1, across=True))
