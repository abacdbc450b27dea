"""What stands where: one street as plain numbers, before anything about its looks is decided.

The layout depends only on how a domain builds its streets (`StreetStyle`), never on its colours or light.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Mapping

import numpy as np

BEHIND = 2.0  # metres; blocks start here, in front of the camera but outside the picture
STREET_END = 95.0

_DEFAULT_AMOUNTS = {
    "parked car": 0.6, "moving car": 2.2, "truck": 0.45, "bus": 0.45, "train": 0.4, "person": 5.0, "crossing person": 0.5,
    "bicycle rider": 0.8, "motorcycle rider": 0.5, "bicycle": 0.9, "motorcycle": 0.8, "tree": 2.0, "lamp": 3.0, "light": 1.6,
    "sign": 2.4,
}  # mean number per scene; "parked car" is the share of taken parking places  # fmt: skip


@dataclass(frozen=True)
class StreetStyle:
    """How a domain builds and films its streets; pairs are (lowest, highest) of a uniform draw.

    Attributes:
        camera_height: metres.
        horizon: its row, as a share of the picture's height.
        focal: focal length over picture width (of a 2:1 picture).
        lanes: number of lanes, both directions together.
        lane_width, sidewalk: metres.
        floors: storeys of a building.
        blocks: relative frequency of what lines the street: "building", "park", "wall", "fence".
        amounts: factors on the usual number of things, by kind; 0 = never.
        terrain: share of streets with a grass verge (and of parks on grass).
    """

    camera_height: tuple[float, float]
    horizon: tuple[float, float]
    focal: tuple[float, float]
    lanes: tuple[int, int]
    lane_width: float
    sidewalk: tuple[float, float]
    floors: tuple[int, int]
    blocks: Mapping[str, float]
    amounts: Mapping[str, float] = field(default_factory=dict)
    terrain: float = 0.6


@dataclass(frozen=True)
class Thing:
    """One thing on the street: its left near bottom corner is at (x, 0, z) and its own looks follow from ``seed``."""

    kind: str
    x: float
    z: float
    width: float  # along x
    height: float
    length: float  # along z
    seed: int
    side: int = 1  # -1 left of the camera, 1 right
    across: bool = False  # drives along x, not along z


@dataclass(frozen=True)
class Scene:
    """A street with the camera at x = 0; ``things`` are in painting order, far to near."""

    camera_height: float
    horizon: float
    focal: float
    vanishing_x: float  # share of the picture's width
    road: tuple[float, float]  # x of the left and right kerb
    lane_width: float
    walk: tuple[float, float]  # x of the outer edges of the sidewalks
    verge: tuple[float, float]  # x of the outer edges of the grass verges (equal to ``walk`` without one)
    junction: tuple[float, float] | None  # z of a crossing street
    rails: tuple[float, float] | None  # x of the edges of a tram track
    things: tuple[Thing, ...]


def lay_out(style: StreetStyle, rng: np.random.Generator) -> Scene:
    """Draw one street."""
    lanes = int(rng.integers(style.lanes[0], style.lanes[1] + 1))
    ahead = max(lanes // 2, 1)
    lane = int(rng.integers(0, ahead))  # counted from the right kerb
    parking = 2.3
    right = (lane + 0.5) * style.lane_width + parking
    left = right - lanes * style.lane_width - 2 * parking
    walk = (left - rng.uniform(*style.sidewalk), right + rng.uniform(*style.sidewalk))
    verge_width = rng.uniform(1.5, 4.0) if rng.random() < style.terrain else 0.0
    verge = (walk[0] - verge_width, walk[1] + verge_width)
    start = rng.uniform(16.0, 36.0)
    junction = (start, start + rng.uniform(8.0, 12.0)) if rng.random() < 0.4 else None

    placed = _Placing(style, rng, (left, right), walk, verge, junction)
    blocks = [*placed.blocks(-1), *placed.blocks(1)]
    inner, crossing, rails = placed.on_the_street(parking)
    far = junction[0] if junction else 0.0
    painting = sorted(
        [(block, 0) for block in blocks] + [(thing, 1) for thing in inner] + [(thing, 2) for thing in crossing],
        # A block never hides what stands between the two house fronts, but it may hide what waits in the side street.
        key=lambda entry: (entry[0].z < far and entry[1] != 2, entry[1], -entry[0].z),
    )
    return Scene(
        camera_height=rng.uniform(*style.camera_height), horizon=rng.uniform(*style.horizon), focal=rng.uniform(*style.focal),
        vanishing_x=rng.uniform(0.42, 0.58), road=(left, right), lane_width=style.lane_width, walk=walk, verge=verge,
        junction=junction, rails=rails, things=tuple(thing for thing, _ in painting),
    )  # fmt: skip


class _Placing:
    """The rules of placing, sharing one street and one random stream."""

    def __init__(
        self,
        style: StreetStyle,
        rng: np.random.Generator,
        road: tuple[float, float],
        walk: tuple[float, float],
        verge: tuple[float, float],
        junction: tuple[float, float] | None,
    ) -> None:
        self.style, self.rng, self.road, self.walk, self.verge, self.junction = style, rng, road, walk, verge, junction

    def thing(self, kind: str, x: float, z: float, size: tuple[float, float, float], **more: object) -> Thing:
        width, height, length = size
        return Thing(kind, x, z, width, height, length, int(self.rng.integers(2**31)), **more)  # type: ignore[arg-type]

    def amount(self, kind: str) -> float:
        return _DEFAULT_AMOUNTS[kind] * self.style.amounts.get(kind, 1.0)

    def count(self, kind: str) -> int:
        return int(self.rng.poisson(self.amount(kind)))

    def in_junction(self, z: float, margin: float = 0.0) -> bool:
        return self.junction is not None and self.junction[0] - margin < z < self.junction[1] + margin

    def blocks(self, side: int) -> list[Thing]:
        """House fronts, parks, walls and fences along one side; a gap where the crossing street is."""
        kinds = sorted(self.style.blocks)
        weights = np.array([self.style.blocks[kind] for kind in kinds])
        front = self.verge[0] if side < 0 else self.verge[1]
        things: list[Thing] = []
        z = BEHIND
        while z < STREET_END:
            length = float(self.rng.uniform(7.0, 16.0))
            if self.junction and z < self.junction[0] < z + length:
                length = max(self.junction[0] - z, 0.5)
            elif self.in_junction(z + 0.01):
                z = self.junction[1]  # type: ignore[index]
                continue
            kind = str(self.rng.choice(kinds, p=weights / weights.sum()))
            floors = self.rng.integers(self.style.floors[0], self.style.floors[1] + 1)
            height = {
                "building": 1.0 + 3.1 * floors,
                "park": self.rng.uniform(4.5, 8.0),
                "wall": self.rng.uniform(1.8, 3.0),
                "fence": self.rng.uniform(1.6, 2.4),
            }[kind]
            things.append(self.thing(kind, front, z, (14.0, float(height), length), side=side))
            z += length
        return things

    def on_the_street(self, parking: float) -> tuple[list[Thing], list[Thing], tuple[float, float] | None]:
        """-> things between the house fronts, things on the crossing street, x of the tram track."""
        rng, (left, right) = self.rng, self.road
        inner: list[Thing] = []
        crossing: list[Thing] = []
        taken: list[tuple[float, float, float, float]] = []  # x0, x1, z0, z1 of things that are solid

        def put(
            kind: str, x: float, z: float, size: tuple[float, float, float], gap: float = 0.4, **more: object
        ) -> bool:
            box = (x - 0.1, x + size[0] + 0.1, z - gap, z + size[2] + gap)
            if any(box[0] < b[1] and b[0] < box[1] and box[2] < b[3] and b[2] < box[3] for b in taken):
                return False
            taken.append(box)
            inner.append(self.thing(kind, x, z, size, side=-1 if x + size[0] / 2 < 0 else 1, **more))
            return True

        lanes = round((right - left - 2 * parking) / self.style.lane_width)

        def lane_x(lane: int, width: float) -> float:
            return left + parking + (lane + 0.5) * self.style.lane_width - width / 2

        own = int((0.0 - left - parking) // self.style.lane_width)
        rails = None
        if rng.random() < self.amount("train"):
            width = 2.7
            if self.junction and rng.random() < 0.4:
                crossing.append(
                    self.thing("train", rng.uniform(-22.0, -2.0), self.junction[0] + 2.5, (24.0, 3.6, 2.6), across=True)
                )
            else:
                lane = 0 if own > 0 else lanes - 1
                x = lane_x(lane, width)
                rails = (x + 0.5, x + width - 0.5)
                if lane != own:
                    put("train", x, rng.uniform(7.0, 26.0), (width, 3.6, rng.uniform(16.0, 26.0)))
        for kind, size in (("bus", (2.6, 3.1, 10.5)), ("truck", (2.6, 3.5, 8.5))):
            if rng.random() < self.amount(kind):
                if self.junction and rng.random() < 0.35:
                    long = (size[2], size[1], size[0])
                    crossing.append(
                        self.thing(kind, rng.uniform(-10.0, 4.0), self.junction[0] + 2.0, long, across=True)
                    )
                else:
                    lane = int(rng.integers(0, lanes))
                    put(kind, lane_x(lane, size[0]), rng.uniform(13.0 if lane == own else 9.0, 30.0), size)
        for _ in range(self.count("moving car")):
            lane = int(rng.integers(0, lanes))
            size = (rng.uniform(1.7, 1.95), rng.uniform(1.4, 1.85), rng.uniform(3.8, 4.8))
            put("car", lane_x(lane, size[0]), rng.uniform(9.0 if lane == own else 7.0, 45.0), size)
        if self.junction and rng.random() < 0.5:
            crossing.append(
                self.thing(
                    "car",
                    rng.uniform(-8.0, 6.0),
                    self.junction[0] + rng.uniform(1.5, 4.0),
                    (4.4, 1.5, 1.8),
                    across=True,
                )
            )
        for kerb, side in ((left, -1), (right, 1)):
            z = rng.uniform(5.0, 9.0)
            while z < 50.0:
                if rng.random() < self.amount("parked car") and not self.in_junction(z + 2.2, 5.0):
                    size = (rng.uniform(1.7, 1.95), rng.uniform(1.4, 1.85), rng.uniform(3.8, 4.8))
                    put("car", kerb + 0.2 if side < 0 else kerb - 0.2 - size[0], z, size, gap=0.2)
                z += 6.0
        for kind, name in (("bicycle rider", "bicycle"), ("motorcycle rider", "motorcycle")):
            for _ in range(self.count(kind)):
                side = int(rng.choice([-1, 1]))
                x = right - parking - rng.uniform(0.3, 1.2) if side > 0 else left + parking + rng.uniform(0.2, 1.0)
                put(f"{name} with rider", x, rng.uniform(6.0, 17.0), (1.0, 1.75, 1.7), across=bool(rng.random() < 0.5))
        for kind in ("bicycle", "motorcycle"):
            for _ in range(self.count(kind)):
                side = int(rng.choice([-1, 1]))
                x = right + rng.uniform(0.2, 0.6) if side > 0 else left - rng.uniform(0.9, 1.5)
                put(kind, x, rng.uniform(6.0, 17.0), (1.0, 1.1, 1.7), across=bool(rng.random() < 0.5))
        for _ in range(self.count("person")):
            side = int(rng.choice([-1, 1]))
            inside, outside = (right, self.walk[1]) if side > 0 else (left, self.walk[0])
            x = inside + (outside - inside) * rng.uniform(0.3, 0.95)
            put("person", x - 0.3, rng.uniform(7.0, 26.0), (0.6, rng.uniform(1.55, 1.9), 0.4), gap=0.1)
        for _ in range(self.count("crossing person")):
            put(
                "person",
                rng.uniform(left, right),
                rng.uniform(9.0, 22.0),
                (0.6, rng.uniform(1.6, 1.9), 0.4),
                across=True,
            )
        for kind, nearest, farthest in (
            ("lamp", 7.0, 45.0),
            ("light", 8.0, 20.0),
            ("sign", 7.0, 20.0),
            ("tree", 9.0, 60.0),
        ):
            for _ in range(self.count(kind)):
                side = int(rng.choice([-1, 1]))
                x = right + rng.uniform(0.3, 0.7) if side > 0 else left - rng.uniform(0.3, 0.7)
                z = rng.uniform(nearest, farthest)
                if not self.in_junction(z):
                    height = {"lamp": rng.uniform(5.0, 7.5), "light": rng.uniform(3.2, 4.6), "sign": rng.uniform(2.6, 3.2),
                              "tree": rng.uniform(4.5, 7.5)}[kind]  # fmt: skip
                    put(kind, x, z, (0.2, height, 0.2), gap=0.1)
        return inner, crossing, rails
