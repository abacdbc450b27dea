"""Painting of each kind of thing in the colors of one domain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from tmt_d2.data.datasets.label_spaces import IGNORE, TRAIN_ID
from tmt_d2.projects.street_scenes.canvas import FARTHEST, NEAREST, Canvas, Color, Point, shade
from tmt_d2.projects.street_scenes.domains import Domain, Light
from tmt_d2.projects.street_scenes.scene import GROUND_FLOOR, STORY, Scene, Thing

_LIT = ((255.0, 222.0, 150.0), (250.0, 236.0, 200.0))
_WHITE = (236, 236, 232)
# Windows: meters of facade for one; share of that width; lower and upper edge as shares of a story.
_WINDOWS = {
    "upright": (2.0, 0.45, 0.25, 0.85), "band": (6.0, 0.92, 0.35, 0.8),
    "grid": (2.6, 0.8, 0.12, 0.92), "square": (3.2, 0.5, 0.3, 0.75),
}  # fmt: skip
Place = Callable[[float, float], Point]  # (along, up), shares of a face -> world point
Span = tuple[float, float]


class Painter:
    """Paints a scene on a canvas.

    Attributes:
        glow: light sources painted so far: (x, y, radius) in canvas pixels and color.
    """

    def __init__(self, canvas: Canvas, scene: Scene, domain: Domain, light: Light, rng: np.random.Generator) -> None:
        self.canvas, self.scene, self.domain, self.light, self.rng = canvas, scene, domain, light, rng
        self.sun = int(rng.choice([-1, 1]))
        self.glow: list[tuple[float, float, float, Color]] = []
        self._painters: dict[str, Callable[[Thing], None]] = {
            "building": self._building, "park": self._park, "wall": self._wall, "fence": self._fence,
            "tree": self._tree, "lamp": self._lamp, "light": self._light, "sign": self._sign,
            "person": self._person, "bicycle": self._bicycle, "motorcycle": self._motorcycle,
            "bicycle with rider": self._bicycle_with_rider, "motorcycle with rider": self._motorcycle_with_rider,
            "car": self._car, "truck": self._truck, "bus": self._bus, "train": self._train,
        }  # fmt: skip

    def color(self, name: str, jitter: float = 0.06) -> Color:
        choices = self.domain.colors[name]
        base = np.array(choices[int(self.rng.integers(len(choices)))]) * (1 + self.rng.uniform(-jitter, jitter))
        red, green, blue = base + self.rng.uniform(-60, 60, 3) * jitter
        return red, green, blue

    def lamp(self, point: Point, radius: float, color: Color) -> None:
        """Add a light source of ``radius`` meters; it shines only at night."""
        if self.light.night:
            (x, y), scale = self.canvas.camera.project(point), self.canvas.camera.focal / max(point[2], NEAREST)
            self.glow.append((x, y, radius * scale, color))

    # -- street --------------------------------------------------------------------------------------------------------

    def street(self) -> None:
        """Paint sky, backdrop, ground, sidewalks, road and markings."""
        street, canvas = self.scene.street, self.canvas
        height, _ = canvas.camera.size
        rows = np.clip(np.arange(height) / max(canvas.camera.horizon, 1.0), 0, 1)[:, None]
        top, bottom = (np.array(color) for color in self.light.sky)
        # The light's sky has its final colors: divide by the gain, which `film` applies to all pixels.
        sky = (top * (1 - rows) + bottom * rows) / np.array(self.light.gain)
        canvas.color[:] = np.clip(sky, 0, 255)[:, None].astype(np.uint8)
        canvas.label[:] = TRAIN_ID["sky"]
        canvas.depth[: max(int(canvas.camera.horizon), 0)] = 0.0  # no haze on the sky
        self._backdrop()

        ahead = (NEAREST, FARTHEST)
        name = "terrain" if self.domain.street.terrain > 0 else "sidewalk"
        self._strip((-200, 200), ahead, self.color(name), name)
        for side in (0, 1):
            if street.verge[side] != street.walk[side]:
                self._strip((street.walk[side], street.verge[side]), ahead, self.color("terrain"), "terrain")
            self._strip((street.road[side], street.walk[side]), ahead, self.color("sidewalk"), "sidewalk")
        asphalt = self.color("road", 0.03)
        self._strip(street.road, ahead, asphalt, "road")
        curb = shade(self.color("sidewalk"), 1.12)
        for x in street.road:
            self._strip((x - 0.09, x + 0.09), ahead, curb, "sidewalk")
        if street.junction:
            near, far = street.junction
            self._strip((-200, 200), (near - 3.0, far + 3.0), self.color("sidewalk"), "sidewalk")
            self._strip((-200, 200), (near, far), asphalt, "road")
            self._strip(street.road, (near - 4.0, far + 4.0), asphalt, "road")
        self._markings()

    def _strip(self, x: Span, z: Span, color: Color, label: str | None) -> None:
        corners = [(x[0], 0, z[0]), (x[1], 0, z[0]), (x[1], 0, z[1]), (x[0], 0, z[1])]
        self.canvas.fill(corners, color, label, ground=True)

    def _backdrop(self) -> None:
        """Trees and roofs at the end of the street."""
        x, z = -90.0, FARTHEST - 1
        while x < 90.0:
            width, name = self.rng.uniform(6, 16), "vegetation" if self.rng.random() < 0.55 else "building"
            height, color = self.rng.uniform(3.0, 9.0), self.color(name)
            if name == "vegetation":
                self.canvas.disc((x + width / 2, height * 0.3, z), (width * 0.6, height * 0.7), color, name)
            else:
                self.canvas.rectangle((x, x + width), (0.0, height), z, color, name)
            x += width * 0.8

    def _markings(self) -> None:
        street, paint = self.scene.street, self.color("marking")
        lanes = street.lane_count
        spans = [(NEAREST, 90.0)]
        if street.junction:
            spans = [(NEAREST, street.junction[0] - 4.0), (street.junction[1] + 4.0, 90.0)]
        for near, far in spans:
            for line in range(lanes + 1):
                x = street.lanes[0] + line * street.lane_width
                if line in (0, lanes):
                    self._strip((x - 0.07, x + 0.07), (near, far), shade(paint, 0.95), None)
                    continue
                for z in np.arange(near + 1.0, far - 3.0, 7.0):
                    self._strip((x - 0.09, x + 0.09), (z, z + 3.5), paint, None)
        if street.junction:
            stripes = (street.junction[0] - 3.4, street.junction[0] - 0.6)
            for x in np.arange(street.road[0] + 0.4, street.road[1] - 0.6, 1.1):
                self._strip((x, x + 0.55), stripes, paint, None)
        for x in street.rails or ():
            self._strip((x - 0.1, x + 0.1), (NEAREST, 90.0), self.color("rail"), None)

    def hood(self) -> None:
        """Paint the hood of the camera's car at the lower edge: ignored pixels."""
        height, width = self.canvas.camera.size
        rows, columns = np.mgrid[0:height, 0:width]
        inside = rows > height * (0.955 + 0.12 * ((columns - width * 0.5) / width * 2) ** 2)
        self.canvas.color[inside] = np.clip((np.array(self.domain.colors["car"][0]) * 0.6 + 18), 0, 255)
        self.canvas.label[inside] = IGNORE
        self.canvas.depth[inside] = 0.0

    # -- blocks along the street ---------------------------------------------------------------------------------------

    def thing(self, thing: Thing) -> None:
        self.rng = np.random.default_rng(thing.seed)
        self._painters[thing.kind](thing)

    def _side_light(self, facing: int) -> float:
        """Brightness of a face that looks to the left (-1) or right (1)."""
        return 1.0 if facing == self.sun else self.light.shadow

    def _front(self, thing: Thing, color: Color, label: str) -> tuple[Place, float]:
        """Paint a block's near end and its side to the street; return places on that side and its brightness."""
        x, z0, z1, top = thing.x, max(thing.z, NEAREST), thing.z + thing.length, thing.height
        bright = self._side_light(-thing.side)
        self.canvas.rectangle((x, x + thing.side * thing.width), (0, top), z0, shade(color, 0.9), label)
        self.canvas.fill([(x, 0, z0), (x, 0, z1), (x, top, z1), (x, top, z0)], shade(color, bright), label)
        return lambda along, up: (x, up * top, z0 + along * (z1 - z0)), bright

    def _panel(self, place: Place, along: Span, up: Span, color: Color) -> None:
        (a0, a1), (u0, u1) = along, up
        self.canvas.fill([place(a0, u0), place(a1, u0), place(a1, u1), place(a0, u1)], color)

    def _building(self, thing: Thing) -> None:
        color, glass, trim = self.color("building"), self.color("window"), self.rng.uniform(0.82, 1.15)
        place, bright = self._front(thing, color, "building")
        floors = max(round((thing.height - GROUND_FLOOR) / STORY), 1)
        story, base = STORY / thing.height, 0.6 / thing.height
        self._panel(place, (0, 1), (0, base), shade(color, bright * 0.75))
        self._panel(place, (0, 1), (1 - 0.45 / thing.height, 1), shade(color, bright * trim))
        meters, share, low, high = _WINDOWS[self.domain.windows]
        columns = max(int(thing.length / meters), 1)
        for floor in range(floors):
            for column in range(columns):
                lit = self.light.night and self.rng.random() < 0.35
                tone = _LIT[int(self.rng.integers(2))] if lit else shade(glass, bright * self.rng.uniform(0.8, 1.15))
                start = (column + (1 - share) / 2) / columns
                span = (start, start + share / columns)
                if floor == 0 and self.rng.random() < 0.3:  # a door or shop window
                    self._panel(place, span, (0.0, base + 0.8 * story), shade(color, 0.45))
                    continue
                level = base + floor * story
                self._panel(place, span, (level + low * story, level + high * story), tone)

    def _park(self, thing: Thing) -> None:
        """Trees on grass; on the sidewalk in domains without terrain."""
        far, near, side = thing.z + thing.length, max(thing.z, NEAREST), thing.side
        if self.domain.street.terrain > 0:
            self._strip((thing.x, thing.x + side * 40.0), (near, far), self.color("terrain"), "terrain")
        hedge = self.rng.random() < 0.5
        for z in sorted(self.rng.uniform(near, far, 5), reverse=True):
            x = thing.x + side * self.rng.uniform(2.0, 9.0)
            self._crown(x, float(z), thing.height * self.rng.uniform(0.8, 1.1))
        if hedge:
            color = self.color("vegetation")
            low = Thing("hedge", thing.x + side * 0.6, thing.z, 3.0, self.rng.uniform(0.9, 1.6), thing.length, 0, side)
            self._front(low, shade(color, 0.9), "vegetation")

    def _trees_behind(self, thing: Thing) -> None:
        for z in sorted(self.rng.uniform(max(thing.z, NEAREST + 2), thing.z + thing.length, 3), reverse=True):
            if self.rng.random() < 0.7:
                self._crown(thing.x + thing.side * self.rng.uniform(3.0, 7.0), float(z), self.rng.uniform(4.0, 6.5))

    def _wall(self, thing: Thing) -> None:
        self._trees_behind(thing)
        color = self.color("wall")
        place, bright = self._front(thing, color, "wall")
        self._panel(place, (0, 1), (0.9, 1), shade(color, bright * 1.12))
        for row in range(1, 5):
            self._panel(place, (0, 1), (row * 0.18 - 0.015, row * 0.18 + 0.015), shade(color, bright * 0.82))

    def _fence(self, thing: Thing) -> None:
        self._trees_behind(thing)
        color = self.color("fence")
        place, bright = self._front(thing, shade(color, 0.62), "fence")
        slats = max(int(thing.length / 0.42), 2)
        for slat in range(slats):
            self._panel(place, (slat / slats, (slat + 0.55) / slats), (0.0, 1.0), shade(color, bright * 1.3 + 0.12))
        for rail in (0.2, 0.8):
            self._panel(place, (0, 1), (rail, rail + 0.07), shade(color, bright * 1.1))

    # -- trees, posts, people ------------------------------------------------------------------------------------------

    def _crown(self, x: float, z: float, height: float) -> None:
        """Paint a tree that stands at (x, 0, z)."""
        green, trunk, label = self.color("vegetation"), self.color("trunk"), "vegetation"
        thick = max(0.28, self.canvas.camera.meters(2.2, z))
        self.canvas.bar((x, 0, z), (x, height * 0.6, z), thick, trunk, label)
        if self.domain.crown == "palm":
            for angle in np.linspace(-0.5, np.pi + 0.5, 9):
                tip = (x + np.cos(angle) * height * 0.36, height * 0.86 + np.sin(angle) * height * 0.2, z)
                tone = shade(green, self.rng.uniform(0.8, 1.2))
                self.canvas.bar((x, height * 0.8, z), tip, height * 0.16, tone, label)
            return
        spread, up = (0.34, 1.0) if self.domain.crown == "round" else (0.22, 1.4)
        for _ in range(9):
            dx, dy = self.rng.normal(0, spread * 0.45) * height, self.rng.uniform(-0.2, 0.2) * height
            radius = self.rng.uniform(0.14, 0.24) * height
            tone = shade(green, self.rng.uniform(0.78, 1.0) + 0.5 * max(dy / height, 0))
            self.canvas.disc((x + dx, height * 0.72 + dy, z), (radius, radius * up), tone, label)

    def _tree(self, thing: Thing) -> None:
        self._crown(thing.x, thing.z, thing.height)

    def _post(self, thing: Thing) -> float:
        """Paint a pole at least two pixels wide; return its width."""
        width = max(0.16, self.canvas.camera.meters(2.3, thing.z))
        self.canvas.bar((thing.x, 0, thing.z), (thing.x, thing.height, thing.z), width, self.color("pole"), "pole")
        return width

    def _lamp(self, thing: Thing) -> None:
        width = self._post(thing)
        tip = (thing.x - thing.side * 1.6, thing.height + 0.1, thing.z)
        self.canvas.bar((thing.x, thing.height, thing.z), tip, width * 0.8, self.color("pole"), "pole")
        self.lamp(tip, 0.5, (255, 214, 140))

    def _light(self, thing: Thing) -> None:
        self._post(thing)
        wide = max(0.5, self.canvas.camera.meters(5.0, thing.z))
        tall = wide * 2.3
        x, z, top = thing.x, thing.z, thing.height + tall * 0.3
        box = (x - wide / 2, x + wide / 2), (top - tall, top)
        self.canvas.rectangle(*box, z, self.color("light"), "traffic light")
        on = int(self.rng.integers(3))
        for lamp, color in enumerate(((240, 50, 40), (245, 180, 40), (60, 230, 110))):
            center = (x, top - tall * (0.2 + 0.3 * lamp), z)
            self.canvas.disc(center, (wide * 0.3, wide * 0.3), color if lamp == on else shade(color, 0.3))
            if lamp == on:
                self.lamp(center, 0.25, color)

    def _sign(self, thing: Thing) -> None:
        self._post(thing)
        radius = max(0.42, self.canvas.camera.meters(3.6, thing.z))
        x, y, z = center = (thing.x, thing.height, thing.z)
        color, label = self.color("sign"), "traffic sign"
        shape = int(self.rng.integers(3))  # disc, triangle, square
        if shape == 0:
            self.canvas.disc(center, (radius, radius), color, label)
            self.canvas.disc(center, (radius * 0.6, radius * 0.6), _WHITE)
        else:
            tip = 0.0 if shape == 1 else radius
            outline = [(-radius, -radius), (radius, -radius), (tip, radius), (-tip, radius)]
            self.canvas.fill([(x + dx, y + dy, z) for dx, dy in outline], color, label)
            self.canvas.fill([(x + dx * 0.55, y + dy * 0.5 - radius * 0.1, z) for dx, dy in outline], _WHITE)

    def _person(self, thing: Thing) -> None:
        self._body(thing.middle, 0.0, thing.z, thing.height, "person", stride=0.5 if thing.across else 0.25)

    def _body(
        self, x: float, ground: float, z: float, height: float, name: str, stride: float, seated: bool = False
    ) -> None:
        """Paint head, arms, body and legs of somebody ``height`` meters tall."""
        clothes, trousers, skin = self.color(name), self.color("trousers"), self.color("skin")
        canvas, hip, neck = self.canvas, ground + height * 0.48, ground + height * 0.83
        step, sleeve = height * stride * 0.4, shade(clothes, 0.85)
        if seated:
            knee = (x + 0.28, hip - height * 0.2, z)
            canvas.bar((x - 0.05, hip, z), knee, height * 0.12, trousers, name)
            canvas.bar(knee, (x + 0.12, hip - height * 0.42, z), height * 0.1, trousers, name)
            canvas.bar((x + 0.05, neck - 0.1, z), (x + 0.42, neck - height * 0.28, z), height * 0.09, sleeve, name)
        else:
            canvas.bar((x, hip, z), (x - step, ground, z), height * 0.11, trousers, name)
            canvas.bar((x, hip, z), (x + step, ground, z), height * 0.11, shade(trousers, 0.85), name)
            for way in (-1, 1):
                hand = (x + way * height * 0.16, hip - height * 0.02, z)
                canvas.bar((x + way * height * 0.1, neck, z), hand, height * 0.07, sleeve, name)
        shoulder, waist = height * 0.14, height * 0.1
        torso = [(-waist, hip - 0.05), (waist, hip - 0.05), (shoulder, neck), (-shoulder, neck)]
        canvas.fill([(x + dx, y, z) for dx, y in torso], clothes, name)
        head = ground + height * 0.92
        canvas.disc((x, head, z), (height * 0.075, height * 0.09), skin, name)
        hair = self.color("frame") if name == "rider" else shade(self.color("trunk"), 0.7)
        canvas.disc((x, head + height * 0.035, z), (height * 0.08, height * 0.06), hair, name)

    # -- two wheels ----------------------------------------------------------------------------------------------------

    def _spoked_wheel(self, center: Point, radius: float, squeeze: float) -> None:
        x, y, z = center
        self.canvas.disc(center, (radius * squeeze, radius), None, "bicycle")
        rim = max(0.06, self.canvas.camera.meters(1.3, z))
        for angles in pairwise(np.linspace(0, 2 * np.pi, 17)):
            start, end = ((x + radius * squeeze * np.cos(t), y + radius * np.sin(t), z) for t in angles)
            self.canvas.bar(start, end, rim, self.color("tire"), "bicycle")

    def _bicycle(self, thing: Thing) -> None:
        label, color, z = "bicycle", self.color("frame"), thing.z
        squeeze = 1.0 if thing.across else 0.6
        x, radius, base = thing.middle, 0.36, 0.56 * squeeze
        thick = max(0.07, self.canvas.camera.meters(1.5, z))
        for way in (-1, 1):
            self._spoked_wheel((x + way * base, radius, z), radius, squeeze)
        crank, seat, head = (x - 0.05, radius, z), (x - base * 0.4, 0.95, z), (x + base * 0.75, 0.95, z)
        rear, front = (x - base, radius, z), (x + base, radius, z)
        frame = ((crank, seat), (crank, head), (seat, head), (rear, seat), (rear, crank), (head, front))
        for start, end in (*frame, (head, (head[0] + 0.02, 1.12, z)), (seat, (seat[0], 1.05, z))):
            self.canvas.bar(start, end, thick, color, label)
        self.canvas.bar((seat[0] - 0.12, 1.05, z), (seat[0] + 0.12, 1.05, z), thick, self.color("tire"), label)

    def _motorcycle(self, thing: Thing) -> None:
        label, color, z = "motorcycle", self.color("motorcycle"), thing.z
        squeeze = 1.0 if thing.across else 0.65
        x, radius, base = thing.middle, 0.33, 0.68 * squeeze

        def outline(*points: tuple[float, float]) -> list[Point]:
            return [(x + dx * base, y, z) for dx, y in points]

        for way in (-1, 1):
            center = (x + way * base, radius, z)
            self.canvas.disc(center, (radius * squeeze, radius), self.color("tire"), label)
            self.canvas.disc(center, (radius * 0.45 * squeeze, radius * 0.45), (150, 150, 152))
        body = outline(
            (-1.2, 0.72), (-0.6, 0.35), (0.5, 0.35), (0.9, 0.75), (0.75, 1.0), (0.1, 0.92), (-0.2, 0.82), (-1.2, 0.9)
        )
        self.canvas.fill(body, color, label)
        self.canvas.fill(outline((-0.5, 0.35), (0.4, 0.35), (0.3, 0.6), (-0.4, 0.6)), (96, 98, 102))
        self.canvas.bar((x - base * 0.9, 0.88, z), (x, 0.88, z), 0.12, self.color("tire"), label)
        self.canvas.bar((x + base, radius, z), (x + base * 0.7, 1.12, z), 0.08, (110, 110, 114), label)
        self.lamp((x + base * 0.95, 0.85, z), 0.15, (255, 240, 200))

    def _bicycle_with_rider(self, thing: Thing) -> None:
        self._bicycle(thing)
        self._body(thing.middle - 0.15, 0.28, thing.z, thing.height * 0.92, "rider", 0.0, seated=True)

    def _motorcycle_with_rider(self, thing: Thing) -> None:
        self._motorcycle(thing)
        self._body(thing.middle - 0.2, 0.18, thing.z, thing.height * 0.9, "rider", 0.0, seated=True)

    # -- four and more wheels ------------------------------------------------------------------------------------------

    def _box(
        self,
        thing: Thing,
        label: str,
        color: Color,
        up: Span,
        span: Span = (0.0, 1.0),
        lean: tuple[float, float, float] = (0.0, 0.0, 0.0),
    ) -> tuple[Place, Place]:
        """Paint a box from height ``up[0]`` to ``up[1]`` meters over ``span`` of the vehicle's length.

        Args:
            lean: meters by which the top is shorter at the near end, shorter at the far end, narrower on each side.

        Returns:
            places on the two visible faces: the vehicle's side, its near end.
        """
        length, width = (thing.width, thing.length) if thing.across else (thing.length, thing.width)

        def corner(end: int, side: int, top: bool) -> Point:
            along = span[end] * length + (lean[0], -lean[1])[end] * top
            across = side * width + (lean[2], -lean[2])[side] * top
            dx, dz = (along, across) if thing.across else (across, along)
            return thing.x + dx, up[top], thing.z + dz

        def face(first: tuple[int, int], second: tuple[int, int]) -> Place:
            starts = [np.array(corner(*first, top)) for top in (False, True)]
            steps = [np.array(corner(*second, top)) - start for top, start in zip((False, True), starts)]

            def place(along: float, rise: float) -> Point:
                bottom, top = (start + along * step for start, step in zip(starts, steps))
                x, y, z = bottom + rise * (top - bottom)
                return x, y, z

            return place

        facing = -1 if thing.middle > 0 else 1
        right = 0 if facing < 0 else 1  # the side, or end, that faces the street's middle
        flank = face((right, 0), (right, 1)) if thing.across else face((0, right), (1, right))
        near = face((0, 0), (1, 0)) if thing.across else face((0, 0), (0, 1))
        roof = [corner(0, 0, True), corner(1, 0, True), corner(1, 1, True), corner(0, 1, True)]
        self.canvas.fill(roof, shade(color, 1.1), label)
        for place, tone in ((flank, self._side_light(facing)), (near, 0.92)):
            self.canvas.fill([place(0, 0), place(1, 0), place(1, 1), place(0, 1)], shade(color, tone), label)
        return (near, flank) if thing.across else (flank, near)

    def _shadow(self, thing: Thing, label: str, radius: float) -> None:
        """Paint the shadow on the road, and the tires as seen from the end."""
        shadow, tire = self.color("shadow"), self.color("tire")
        x0, x1, z0, z1 = thing.x - 0.15, thing.x + thing.width + 0.15, thing.z - 0.1, thing.z + thing.length
        self.canvas.fill([(x0, 0, z0), (x1, 0, z0), (x1, 0, z1), (x0, 0, z1)], shadow)
        if thing.across:
            return
        wide = thing.width * 0.18
        for x in (thing.x + 0.05, thing.x + thing.width - 0.05 - wide):
            self.canvas.rectangle((x, x + wide), (0, radius * 1.5), z0, tire, label)

    def _wheels(self, thing: Thing, label: str, shares: Sequence[float], radius: float) -> None:
        """Paint wheels on the visible side, at ``shares`` of the vehicle's length."""
        tire, side = self.color("tire"), not thing.across
        x = thing.x - 0.01 if thing.middle > 0 else thing.x + thing.width + 0.01
        for share in shares:
            center = (x, radius, thing.z + share * thing.length)
            if thing.across:
                center = (thing.x + share * thing.width, radius, thing.z - 0.01)
            self.canvas.disc(center, (radius, radius), tire, label, side)
            self.canvas.disc(center, (radius * 0.5, radius * 0.5), (140, 140, 144), side=side)

    def _end_lights(self, thing: Thing, near: Place, low: float, high: float) -> None:
        """Paint white headlights on vehicles that come toward the camera, else red tail lights; and a plate."""
        front = thing.middle < 0
        color: Color = (250, 246, 220) if front else (190, 24, 24)
        for start in (0.05, 0.77):
            self._panel(near, (start, start + 0.18), (low, high), color)
            self.lamp(near(start + 0.09, (low + high) / 2), 0.2 if front else 0.06, color)
        self._panel(near, (0.38, 0.62), (low * 0.6, low * 0.6 + 0.16), (226, 226, 220))

    def _car(self, thing: Thing) -> None:
        label, color, glass = "car", self.color("car"), self.color("glass")
        belt = thing.height * 0.58
        self._shadow(thing, label, 0.33)
        side, near = self._box(thing, label, color, (0.25, belt), lean=(0.05, 0.05, 0.03))
        slant = 0.55 * (1 - self.domain.boxy) + 0.12
        van = self.rng.random() < 0.3
        rear, hood = (0.02, 0.74) if van else (0.08, 0.7)
        if thing.middle < 0:  # it comes toward the camera
            rear, hood = 1 - hood, 1 - rear
        cabin = (belt, thing.height), (rear, hood), (slant, slant, 0.16)
        cabin_side, cabin_near = self._box(thing, label, shade(color, 0.97), *cabin)
        for window in ((0.05, 0.47), (0.53, 0.95)):
            self._panel(cabin_side, window, (0.12, 0.85), shade(glass, 0.85))
        self._panel(cabin_near, (0.06, 0.94), (0.12, 0.85), glass)
        self._panel(side, (0.0, 1.0), (0.0, 0.16), shade(color, 0.5))
        self._panel(side, (0.49, 0.51), (0.16, 1.0), shade(color, 0.6))
        self._end_lights(thing, near, 0.5, 0.8)
        self._wheels(thing, label, (0.18, 0.8), 0.34)

    def _truck(self, thing: Thing) -> None:
        label, cargo, cab, glass = "truck", self.color("truck"), self.color("truck"), self.color("glass")
        self._shadow(thing, label, 0.5)
        self._box(thing, label, (58, 58, 62), (0.45, 0.9))
        # The far part first.
        parts = [((0.27, 1.0), False), ((0.0, 0.24), True)]
        if thing.middle >= 0:
            parts = [((0.76, 1.0), True), ((0.0, 0.73), False)]
        for span, is_cab in parts:
            if is_cab:
                side, near = self._box(thing, label, cab, (0.7, thing.height * 0.78), span)
                self._panel(near, (0.08, 0.92), (0.48, 0.88), glass)
                self._panel(side, (0.15, 0.85), (0.5, 0.88), glass)
                self._end_lights(thing, near, 0.1, 0.24)
            else:
                side, near = self._box(thing, label, cargo, (0.95, thing.height), span)
                self._panel(near, (0.48, 0.52), (0.0, 1.0), shade(cargo, 0.6))
                for band in (0.33, 0.66):
                    self._panel(side, (band, band + 0.015), (0.0, 1.0), shade(cargo, 0.7))
                self._panel(side, (0.1, 0.9), (0.4, 0.62), shade(self.color("sign"), 0.9))
        self._wheels(thing, label, (0.12, 0.24, 0.85), 0.5)

    def _coach(self, thing: Thing, belt: Span, windows: int, stripe: Color) -> tuple[Place, Place]:
        """Paint a long body with a row of windows; return places on its side and near end."""
        color, glass = self.color(thing.kind), self.color("glass")
        side, near = self._box(thing, thing.kind, color, (0.35, thing.height), lean=(0.08, 0.08, 0.05))
        for window in range(windows):
            start = (window + 0.08) / windows
            tone = _LIT[0] if self.light.night else shade(glass, self.rng.uniform(0.85, 1.2))
            self._panel(side, (start, start + 0.84 / windows), belt, tone)
        self._panel(near, (0.08, 0.92), (belt[0] - 0.08, belt[1]), glass)
        self._panel(side, (0.0, 1.0), (0.16, 0.26), stripe)
        self._panel(near, (0.0, 1.0), (0.16, 0.26), stripe)
        self._end_lights(thing, near, 0.05, 0.14)
        return side, near

    def _bus(self, thing: Thing) -> None:
        self._shadow(thing, "bus", 0.5)
        _, near = self._coach(thing, (0.45, 0.82), 6, shade(self.color("bus"), 0.6))
        self._panel(near, (0.25, 0.75), (0.87, 0.95), (240, 150, 40))  # the destination
        self._wheels(thing, "bus", (0.2, 0.78), 0.5)

    def _train(self, thing: Thing) -> None:
        """A tram: longer than a bus, on rails, with a skirt instead of wheels and a bow to the overhead wire."""
        self._shadow(thing, "train", 0.3)
        self._box(thing, "train", (70, 72, 76), (0.1, 0.4))
        side, _ = self._coach(thing, (0.42, 0.86), 12, (236, 234, 226))
        for joint in (0.33, 0.66):
            self._panel(side, (joint - 0.012, joint + 0.012), (0.0, 1.0), (48, 48, 52))
        x, z = thing.middle, thing.z + min(thing.length / 2, 6.0)
        for way in (-0.8, 0.8):
            self.canvas.bar((x, thing.height, z), (x + way, thing.height + 0.9, z), 0.12, (70, 70, 74), "train")
