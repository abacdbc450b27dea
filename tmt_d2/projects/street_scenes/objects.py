"""How each kind of thing is painted, in the colours of one domain."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from tmt_d2.data.datasets.label_spaces import IGNORE, TRAIN_ID
from tmt_d2.projects.street_scenes.canvas import FARTHEST, NEAREST, Canvas, Colour, Point, shade
from tmt_d2.projects.street_scenes.domains import Domain, Light
from tmt_d2.projects.street_scenes.scene import GROUND_FLOOR, STOREY, Scene, Thing

_LIT = ((255.0, 222.0, 150.0), (250.0, 236.0, 200.0))
Place = Callable[[float, float, float], Point]  # (along, across, up) as shares of a body -> world


class Painter:
    """Paints a scene on a canvas.

    Afterwards ``glow`` holds the light sources: (x, y, radius) in canvas pixels and a colour.
    """

    def __init__(self, canvas: Canvas, scene: Scene, domain: Domain, light: Light, rng: np.random.Generator) -> None:
        self.canvas, self.scene, self.domain, self.light, self.rng = canvas, scene, domain, light, rng
        self.sun = int(rng.choice([-1, 1]))
        self.glow: list[tuple[float, float, float, Colour]] = []

    def colour(self, name: str, jitter: float = 0.06) -> Colour:
        choices = self.domain.colours[name]
        base = np.array(choices[int(self.rng.integers(len(choices)))]) * (1 + self.rng.uniform(-jitter, jitter))
        red, green, blue = base + self.rng.uniform(-60, 60, 3) * jitter
        return red, green, blue

    def lamp(self, point: Point, radius: float, colour: Colour) -> None:
        """A light source of ``radius`` metres; it shines only at night."""
        if self.light.night:
            (x, y), scale = self.canvas.camera.project(point), self.canvas.camera.focal / max(point[2], NEAREST)
            self.glow.append((x, y, radius * scale, colour))

    # -- the street itself ---------------------------------------------------------------------------------------------

    def street(self) -> None:
        """Sky, backdrop, ground, sidewalks, road, markings."""
        scene, canvas = self.scene.street, self.canvas
        height, width = canvas.camera.size
        rows = np.clip(np.arange(height) / max(canvas.camera.horizon, 1.0), 0, 1)[:, None]
        top, bottom = (np.array(colour) for colour in self.light.sky)
        # The light's colours are the sky as filmed, so the cast that `appearance` applies to all is taken out here.
        sky = (top * (1 - rows) + bottom * rows) / np.array(self.light.gain)
        canvas.colour[:] = np.clip(sky, 0, 255)[:, None].astype(np.uint8)
        canvas.label[:] = TRAIN_ID["sky"]
        canvas.depth[: max(int(canvas.camera.horizon), 0)] = 0.0  # no haze on the sky
        self._backdrop()

        far = FARTHEST
        grass = self.domain.street.terrain > 0
        name = "terrain" if grass else "sidewalk"
        self._strip(-200, 200, NEAREST, far, self.colour(name), name)
        for side in (0, 1):
            if scene.verge[side] != scene.walk[side]:
                self._strip(scene.walk[side], scene.verge[side], NEAREST, far, self.colour("terrain"), "terrain")
            self._strip(scene.road[side], scene.walk[side], NEAREST, far, self.colour("sidewalk"), "sidewalk")
        asphalt = self.colour("road", 0.03)
        self._strip(*scene.road, NEAREST, far, asphalt, "road")
        kerb = shade(self.colour("sidewalk"), 1.12)
        for x in scene.road:
            self._strip(x - 0.09, x + 0.09, NEAREST, far, kerb, "sidewalk")
        if scene.junction:
            near, beyond = scene.junction
            self._strip(-200, 200, near - 3.0, beyond + 3.0, self.colour("sidewalk"), "sidewalk")
            self._strip(-200, 200, near, beyond, asphalt, "road")
            self._strip(*scene.road, near - 4.0, beyond + 4.0, asphalt, "road")
        self._markings()

    def _strip(self, x0: float, x1: float, z0: float, z1: float, colour: Colour, name: str | None) -> None:
        label = None if name is None else TRAIN_ID[name]
        self.canvas.fill([(x0, 0, z0), (x1, 0, z0), (x1, 0, z1), (x0, 0, z1)], colour, label, ground=True)

    def _backdrop(self) -> None:
        """What closes the view at the end of the street: trees and roofs."""
        x = -90.0
        while x < 90.0:
            width, name = self.rng.uniform(6, 16), "vegetation" if self.rng.random() < 0.55 else "building"
            height, colour = self.rng.uniform(3.0, 9.0), self.colour(name)
            z = FARTHEST - 1
            if name == "vegetation":
                self.canvas.disc((x + width / 2, height * 0.3, z), (width * 0.6, height * 0.7), colour, TRAIN_ID[name])
            else:
                corners = [(x, 0.0, z), (x + width, 0.0, z), (x + width, height, z), (x, height, z)]
                self.canvas.fill(corners, colour, TRAIN_ID[name])
            x += width * 0.8

    def _markings(self) -> None:
        scene, paint = self.scene.street, self.colour("marking")
        lanes = scene.lane_count
        spans = [(NEAREST, 90.0)]
        if scene.junction:
            spans = [(NEAREST, scene.junction[0] - 4.0), (scene.junction[1] + 4.0, 90.0)]
        for near, far in spans:
            for line in range(lanes + 1):
                x = scene.lanes[0] + line * scene.lane_width
                if line in (0, lanes):
                    self._strip(x - 0.07, x + 0.07, near, far, shade(paint, 0.95), None)
                    continue
                for z in np.arange(near + 1.0, far - 3.0, 7.0):
                    self._strip(x - 0.09, x + 0.09, z, z + 3.5, paint, None)
        if scene.junction:
            for x in np.arange(scene.road[0] + 0.4, scene.road[1] - 0.6, 1.1):
                self._strip(x, x + 0.55, scene.junction[0] - 3.4, scene.junction[0] - 0.6, paint, None)
        if scene.rails:
            for x in scene.rails:
                self._strip(x - 0.1, x + 0.1, NEAREST, 90.0, self.colour("rail"), None)

    def bonnet(self) -> None:
        """The filming car's own bonnet, at the lower edge: ignored pixels."""
        height, width = self.canvas.camera.size
        rows, columns = np.mgrid[0:height, 0:width]
        centre = width * 0.5
        edge = height * (0.955 + 0.12 * ((columns - centre) / width * 2) ** 2)
        inside = rows > edge
        self.canvas.colour[inside] = np.clip((np.array(self.domain.colours["car"][0]) * 0.6 + 18), 0, 255)
        self.canvas.label[inside] = IGNORE
        self.canvas.depth[inside] = 0.0

    # -- things --------------------------------------------------------------------------------------------------------

    def thing(self, thing: Thing) -> None:
        self.rng = np.random.default_rng(thing.seed)
        getattr(self, "_" + thing.kind.replace(" ", "_"))(thing)

    def _side_light(self, facing: int) -> float:
        """Brightness of a face that looks to the left (-1) or right (1)."""
        return 1.0 if facing == self.sun else self.light.shadow

    def _front(self, thing: Thing, colour: Colour, label: int, height: float | None = None) -> tuple[Place, float]:
        """Paint a block's street-side face and its near end; -> place(along, _, up) on it, and its brightness."""
        x, z0, z1 = thing.x, max(thing.z, NEAREST), thing.z + thing.length
        top = thing.height if height is None else height
        outward = thing.side * thing.width
        bright = self._side_light(-thing.side)
        self.canvas.fill(
            [(x, 0, z0), (x + outward, 0, z0), (x + outward, top, z0), (x, top, z0)], shade(colour, 0.9), label
        )
        self.canvas.fill([(x, 0, z0), (x, 0, z1), (x, top, z1), (x, top, z0)], shade(colour, bright), label)
        return lambda along, _across, up: (x, up * top, z0 + along * (z1 - z0)), bright

    def _panel(
        self, place: Place, along: tuple[float, float], up: tuple[float, float], colour: Colour, across: float = 0.0
    ) -> None:
        (a0, a1), (u0, u1) = along, up
        self.canvas.fill(
            [place(a0, across, u0), place(a1, across, u0), place(a1, across, u1), place(a0, across, u1)], colour
        )

    def _building(self, thing: Thing) -> None:
        colour, glass, trim = self.colour("building"), self.colour("window"), self.rng.uniform(0.82, 1.15)
        place, bright = self._front(thing, colour, TRAIN_ID["building"])
        floors = max(round((thing.height - GROUND_FLOOR) / STOREY), 1)
        storey = STOREY / thing.height
        base = 0.6 / thing.height
        self._panel(place, (0, 1), (0, base), shade(colour, bright * 0.75))
        self._panel(place, (0, 1), (1 - 0.45 / thing.height, 1), shade(colour, bright * trim))
        columns = max(
            int(thing.length / {"upright": 2.0, "band": 6.0, "grid": 2.6, "square": 3.2}[self.domain.windows]), 1
        )
        share, low, high = {
            "upright": (0.45, 0.25, 0.85), "band": (0.92, 0.35, 0.8),
            "grid": (0.8, 0.12, 0.92), "square": (0.5, 0.3, 0.75),
        }[self.domain.windows]  # fmt: skip
        for floor in range(floors):
            for column in range(columns):
                lit = self.light.night and self.rng.random() < 0.35
                tone = _LIT[int(self.rng.integers(2))] if lit else shade(glass, bright * self.rng.uniform(0.8, 1.15))
                start = (column + (1 - share) / 2) / columns
                span = (start, start + share / columns)
                if floor == 0 and self.rng.random() < 0.3:  # a door or shop window
                    self._panel(place, span, (0.0, base + 0.8 * storey), shade(colour, 0.45))
                    continue
                level = base + floor * storey
                self._panel(place, span, (level + low * storey, level + high * storey), tone)

    def _park(self, thing: Thing) -> None:
        """Grass with trees; some on paving where the domain has no terrain."""
        far, near, side = thing.z + thing.length, max(thing.z, NEAREST), thing.side
        if self.domain.street.terrain > 0:
            self._strip(thing.x, thing.x + side * 40.0, near, far, self.colour("terrain"), "terrain")
        hedge = self.rng.random() < 0.5
        for z in sorted(self.rng.uniform(near, far, 5), reverse=True):
            self._crown(
                thing.x + side * self.rng.uniform(2.0, 9.0), float(z), thing.height * self.rng.uniform(0.8, 1.1)
            )
        if hedge:
            colour = self.colour("vegetation")
            low = Thing("hedge", thing.x + side * 0.6, thing.z, 3.0, self.rng.uniform(0.9, 1.6), thing.length, 0, side)
            self._front(low, shade(colour, 0.9), TRAIN_ID["vegetation"])

    def _behind(self, thing: Thing) -> None:
        """Trees that look over a wall or fence."""
        for z in sorted(self.rng.uniform(max(thing.z, NEAREST + 2), thing.z + thing.length, 3), reverse=True):
            if self.rng.random() < 0.7:
                self._crown(thing.x + thing.side * self.rng.uniform(3.0, 7.0), float(z), self.rng.uniform(4.0, 6.5))

    def _wall(self, thing: Thing) -> None:
        self._behind(thing)
        colour = self.colour("wall")
        place, bright = self._front(thing, colour, TRAIN_ID["wall"])
        self._panel(place, (0, 1), (0.9, 1), shade(colour, bright * 1.12))
        for row in range(1, 5):
            self._panel(place, (0, 1), (row * 0.18 - 0.015, row * 0.18 + 0.015), shade(colour, bright * 0.82))

    def _fence(self, thing: Thing) -> None:
        self._behind(thing)
        colour = self.colour("fence")
        place, bright = self._front(thing, shade(colour, 0.62), TRAIN_ID["fence"])
        slats = max(int(thing.length / 0.42), 2)
        for slat in range(slats):
            self._panel(place, (slat / slats, (slat + 0.55) / slats), (0.0, 1.0), shade(colour, bright * 1.3 + 0.12))
        for rail in (0.2, 0.8):
            self._panel(place, (0, 1), (rail, rail + 0.07), shade(colour, bright * 1.1))

    def _crown(self, x: float, z: float, height: float) -> None:
        """A tree whose foot is at (x, 0, z)."""
        green, label = self.colour("vegetation"), TRAIN_ID["vegetation"]
        trunk = self.colour("trunk")
        thick = max(0.28, self.canvas.camera.metres(2.2, z))
        self.canvas.bar((x, 0, z), (x, height * 0.6, z), thick, trunk, label)
        if self.domain.crown == "palm":
            for angle in np.linspace(-0.5, np.pi + 0.5, 9):
                tip = (x + np.cos(angle) * height * 0.36, height * 0.86 + np.sin(angle) * height * 0.2, z)
                self.canvas.bar(
                    (x, height * 0.8, z), tip, height * 0.16, shade(green, self.rng.uniform(0.8, 1.2)), label
                )
            return
        spread = 0.34 if self.domain.crown == "round" else 0.22
        for _ in range(9):
            dx, dy = self.rng.normal(0, spread * 0.45) * height, self.rng.uniform(-0.2, 0.2) * height
            radius = self.rng.uniform(0.14, 0.24) * height
            tone = self.rng.uniform(0.78, 1.0) + 0.5 * max(dy / height, 0)
            up = 1.0 if self.domain.crown == "round" else 1.4
            self.canvas.disc((x + dx, height * 0.72 + dy, z), (radius, radius * up), shade(green, tone), label)

    def _tree(self, thing: Thing) -> None:
        self._crown(thing.x, thing.z, thing.height)

    def _post(self, thing: Thing, height: float) -> float:
        """A pole that is at least two pixels wide; -> its width."""
        width = max(0.16, self.canvas.camera.metres(2.3, thing.z))
        self.canvas.bar((thing.x, 0, thing.z), (thing.x, height, thing.z), width, self.colour("pole"), TRAIN_ID["pole"])
        return width

    def _lamp(self, thing: Thing) -> None:
        width = self._post(thing, thing.height)
        tip = (thing.x - thing.side * 1.6, thing.height + 0.1, thing.z)
        self.canvas.bar((thing.x, thing.height, thing.z), tip, width * 0.8, self.colour("pole"), TRAIN_ID["pole"])
        self.lamp(tip, 0.5, (255, 214, 140))

    def _light(self, thing: Thing) -> None:
        self._post(thing, thing.height)
        wide = max(0.5, self.canvas.camera.metres(5.0, thing.z))
        tall = wide * 2.3
        x, z = thing.x, thing.z
        top = thing.height + tall * 0.3
        body = [
            (x - wide / 2, top - tall, z),
            (x + wide / 2, top - tall, z),
            (x + wide / 2, top, z),
            (x - wide / 2, top, z),
        ]
        self.canvas.fill(body, self.colour("light"), TRAIN_ID["traffic light"])
        on = int(self.rng.integers(3))
        for lamp, colour in enumerate(((240, 50, 40), (245, 180, 40), (60, 230, 110))):
            centre = (x, top - tall * (0.2 + 0.3 * lamp), z)
            self.canvas.disc(centre, (wide * 0.3, wide * 0.3), colour if lamp == on else shade(colour, 0.3))
            if lamp == on:
                self.lamp(centre, 0.25, colour)

    def _sign(self, thing: Thing) -> None:
        self._post(thing, thing.height)
        radius = max(0.42, self.canvas.camera.metres(3.6, thing.z))
        centre = (thing.x, thing.height, thing.z)
        colour, label = self.colour("sign"), TRAIN_ID["traffic sign"]
        shape = int(self.rng.integers(3))
        if shape == 0:
            self.canvas.disc(centre, (radius, radius), colour, label)
            self.canvas.disc(centre, (radius * 0.6, radius * 0.6), (236, 236, 232))
        else:
            x, y, z = centre
            tip = 0.0 if shape == 1 else radius  # triangle or square
            outline = [(-radius, -radius), (radius, -radius), (tip, radius), (-tip, radius)]
            self.canvas.fill([(x + dx, y + dy, z) for dx, dy in outline], colour, label)
            self.canvas.fill([(x + dx * 0.55, y + dy * 0.5 - radius * 0.1, z) for dx, dy in outline], (236, 236, 232))

    def _person(self, thing: Thing) -> None:
        self._body(
            thing.x + thing.width / 2, 0.0, thing.z, thing.height, "person", stride=0.5 if thing.across else 0.25
        )

    def _body(
        self, x: float, ground: float, z: float, height: float, name: str, stride: float, seated: bool = False
    ) -> None:
        """Head, arms, body and legs of someone ``height`` metres tall."""
        label, clothes, trousers, skin = TRAIN_ID[name], self.colour(name), self.colour("trousers"), self.colour("skin")
        canvas, hip, neck = self.canvas, ground + height * 0.48, ground + height * 0.83
        step = height * stride * 0.4
        if seated:
            canvas.bar((x - 0.05, hip, z), (x + 0.28, hip - height * 0.2, z), height * 0.12, trousers, label)
            canvas.bar(
                (x + 0.28, hip - height * 0.2, z), (x + 0.12, hip - height * 0.42, z), height * 0.1, trousers, label
            )
            canvas.bar(
                (x + 0.05, neck - 0.1, z),
                (x + 0.42, neck - height * 0.28, z),
                height * 0.09,
                shade(clothes, 0.85),
                label,
            )
        else:
            canvas.bar((x, hip, z), (x - step, ground, z), height * 0.11, trousers, label)
            canvas.bar((x, hip, z), (x + step, ground, z), height * 0.11, shade(trousers, 0.85), label)
            for way in (-1, 1):
                hand = (x + way * height * 0.16, hip - height * 0.02, z)
                canvas.bar((x + way * height * 0.1, neck, z), hand, height * 0.07, shade(clothes, 0.85), label)
        shoulder, waist = height * 0.14, height * 0.1
        torso = [
            (x - waist, hip - 0.05, z),
            (x + waist, hip - 0.05, z),
            (x + shoulder, neck, z),
            (x - shoulder, neck, z),
        ]
        canvas.fill(torso, clothes, label)
        head = (x, ground + height * 0.92, z)
        canvas.disc(head, (height * 0.075, height * 0.09), skin, label)
        hair = self.colour("frame") if name == "rider" else shade(self.colour("trunk"), 0.7)
        canvas.disc((x, head[1] + height * 0.035, z), (height * 0.08, height * 0.06), hair, label)

    # -- two wheels ----------------------------------------------------------------------------------------------------

    def _wheel(self, centre: Point, radius: float, squeeze: float, rim: float, label: int) -> None:
        x, y, z = centre
        self.canvas.disc(centre, (radius * squeeze, radius), None, label)
        turn = np.linspace(0, 2 * np.pi, 17)
        rim = max(rim, self.canvas.camera.metres(1.3, z))
        for start, end in pairwise(turn):
            ends = [(x + radius * squeeze * np.cos(t), y + radius * np.sin(t), z) for t in (start, end)]
            self.canvas.bar(ends[0], ends[1], rim, self.colour("tyre"), label)

    def _bicycle(self, thing: Thing) -> None:
        label, colour, z = TRAIN_ID["bicycle"], self.colour("frame"), thing.z
        squeeze = 1.0 if thing.across else 0.6
        x, radius, base = thing.x + thing.width / 2, 0.36, 0.56 * squeeze
        thick = max(0.07, self.canvas.camera.metres(1.5, z))
        for way in (-1, 1):
            self._wheel((x + way * base, radius, z), radius, squeeze, 0.06, label)
        crank, seat, head = (x - 0.05, radius, z), (x - base * 0.4, 0.95, z), (x + base * 0.75, 0.95, z)
        rear, front = (x - base, radius, z), (x + base, radius, z)
        frame = ((crank, seat), (crank, head), (seat, head), (rear, seat), (rear, crank), (head, front))
        for start, end in (*frame, (head, (head[0] + 0.02, 1.12, z)), (seat, (seat[0], 1.05, z))):
            self.canvas.bar(start, end, thick, colour, label)
        self.canvas.bar((seat[0] - 0.12, 1.05, z), (seat[0] + 0.12, 1.05, z), thick, self.colour("tyre"), label)

    def _motorcycle(self, thing: Thing) -> None:
        label, colour, z = TRAIN_ID["motorcycle"], self.colour("motorcycle"), thing.z
        squeeze = 1.0 if thing.across else 0.65
        x, radius, base = thing.x + thing.width / 2, 0.33, 0.68 * squeeze
        for way in (-1, 1):
            self.canvas.disc((x + way * base, radius, z), (radius * squeeze, radius), self.colour("tyre"), label)
            self.canvas.disc((x + way * base, radius, z), (radius * 0.45 * squeeze, radius * 0.45), (150, 150, 152))
        body = [
            (-1.2, 0.72),
            (-0.6, 0.35),
            (0.5, 0.35),
            (0.9, 0.75),
            (0.75, 1.0),
            (0.1, 0.92),
            (-0.2, 0.82),
            (-1.2, 0.9),
        ]
        self.canvas.fill([(x + dx * base, y, z) for dx, y in body], colour, label)
        self.canvas.fill(
            [(x + dx * base, y, z) for dx, y in ((-0.5, 0.35), (0.4, 0.35), (0.3, 0.6), (-0.4, 0.6))], (96, 98, 102)
        )
        self.canvas.bar((x - base * 0.9, 0.88, z), (x, 0.88, z), 0.12, self.colour("tyre"), label)
        self.canvas.bar((x + base, radius, z), (x + base * 0.7, 1.12, z), 0.08, (110, 110, 114), label)
        self.lamp((x + base * 0.95, 0.85, z), 0.15, (255, 240, 200))

    def _bicycle_with_rider(self, thing: Thing) -> None:
        self._bicycle(thing)
        self._body(thing.x + thing.width / 2 - 0.15, 0.28, thing.z, thing.height * 0.92, "rider", 0.0, seated=True)

    def _motorcycle_with_rider(self, thing: Thing) -> None:
        self._motorcycle(thing)
        self._body(thing.x + thing.width / 2 - 0.2, 0.18, thing.z, thing.height * 0.9, "rider", 0.0, seated=True)

    # -- four and more wheels ------------------------------------------------------------------------------------------

    def _box(
        self,
        thing: Thing,
        label: int,
        colour: Colour,
        up: tuple[float, float],
        span: tuple[float, float] = (0.0, 1.0),
        lean: tuple[float, float, float] = (0.0, 0.0, 0.0),
    ) -> dict[str, Place]:
        """Paint a box from height ``up[0]`` to ``up[1]`` metres over ``span`` of the vehicle's length.

        ``lean``: metres by which the top is shorter at the near end, at the far end, and narrower on each side.
        -> "side" and "near": place(along 0-1, _, up 0-1) on the two faces that can be seen.
        """
        long_x = thing.across
        size = thing.width if long_x else thing.length
        begin, end = span[0] * size, span[1] * size
        ends, ends_top = (begin, end), (begin + lean[0], end - lean[1])
        wide = thing.length if long_x else thing.width
        sides, sides_top = (0.0, wide), (lean[2], wide - lean[2])

        def corner(a: int, b: int, top: bool) -> Point:
            along, across = (ends_top if top else ends)[a], (sides_top if top else sides)[b]
            height = up[1] if top else up[0]
            return (
                (thing.x + along, height, thing.z + across) if long_x else (thing.x + across, height, thing.z + along)
            )

        def face(first: tuple[int, int], second: tuple[int, int]) -> Place:
            low, high = (
                (np.array(corner(*first, top)), np.array(corner(*second, top)) - np.array(corner(*first, top)))
                for top in (False, True)
            )

            def place(along: float, _across: float, rise: float) -> Point:
                bottom, top = low[0] + along * low[1], high[0] + along * high[1]
                x, y, z = bottom + rise * (top - bottom)
                return x, y, z

            return place

        middle = thing.x + thing.width / 2
        facing = -1 if middle > 0 else 1
        right = 0 if facing < 0 else 1  # which of the two sides (or ends) looks at the camera
        flank = face((right, 0), (right, 1)) if long_x else face((0, right), (1, right))
        near = face((0, 0), (1, 0)) if long_x else face((0, 0), (0, 1))
        roof = [corner(0, 0, True), corner(1, 0, True), corner(1, 1, True), corner(0, 1, True)]
        for place, tone in ((None, 1.1), (flank, self._side_light(facing)), (near, 0.92)):
            outline = roof if place is None else [place(0, 0, 0), place(1, 0, 0), place(1, 0, 1), place(0, 0, 1)]
            self.canvas.fill(outline, shade(colour, tone), label)
        return {"side": near, "near": flank} if long_x else {"side": flank, "near": near}

    def _shadow(self, thing: Thing, label: int, radius: float) -> None:
        """The shadow on the road, and the tyres as seen from the end."""
        shadow, tyre = self.colour("shadow"), self.colour("tyre")
        x0, x1, z0, z1 = thing.x - 0.15, thing.x + thing.width + 0.15, thing.z - 0.1, thing.z + thing.length
        self.canvas.fill([(x0, 0, z0), (x1, 0, z0), (x1, 0, z1), (x0, 0, z1)], shadow)
        if thing.across:
            return
        wide, high = thing.width * 0.18, radius * 1.5
        for x in (thing.x + 0.05, thing.x + thing.width - 0.05 - wide):
            self.canvas.fill([(x, 0, z0), (x + wide, 0, z0), (x + wide, high, z0), (x, high, z0)], tyre, label)

    def _wheels(self, thing: Thing, label: int, shares: tuple[float, ...], radius: float) -> None:
        """Wheels on the flank that can be seen, at ``shares`` of the vehicle's length."""
        tyre = self.colour("tyre")
        x = thing.x - 0.01 if thing.x + thing.width / 2 > 0 else thing.x + thing.width + 0.01
        for share in shares:
            if thing.across:
                centre = (thing.x + share * thing.width, radius, thing.z - 0.01)
            else:
                centre = (x, radius, thing.z + share * thing.length)
            self.canvas.disc(centre, (radius, radius), tyre, label, side=not thing.across)
            self.canvas.disc(centre, (radius * 0.5, radius * 0.5), (140, 140, 144), side=not thing.across)

    def _tail(self, near: Place, low: float, high: float, front: bool) -> None:
        """Lights on the near face: red from behind, white from the front."""
        colour: Colour = (250, 246, 220) if front else (190, 24, 24)
        for start in (0.05, 0.77):
            self._panel(near, (start, start + 0.18), (low, high), colour)
            self.lamp(near(start + 0.09, 0, (low + high) / 2), 0.2 if front else 0.06, colour)
        self._panel(near, (0.38, 0.62), (low * 0.6, low * 0.6 + 0.16), (226, 226, 220))

    def _car(self, thing: Thing) -> None:
        label, colour, glass = TRAIN_ID["car"], self.colour("car"), self.colour("glass")
        front = thing.x + thing.width / 2 < 0  # on the left side cars come towards the camera
        belt = thing.height * 0.58
        self._shadow(thing, label, 0.33)
        body = self._box(thing, label, colour, (0.25, belt), lean=(0.05, 0.05, 0.03))
        slant = 0.55 * (1 - self.domain.boxy) + 0.12
        van = self.rng.random() < 0.3
        rear, bonnet = (0.02, 0.74) if van else (0.08, 0.7)
        if front:
            rear, bonnet = 1 - bonnet, 1 - rear
        cabin = self._box(thing, label, shade(colour, 0.97), (belt, thing.height), (rear, bonnet), (slant, slant, 0.16))
        for start, end in ((0.05, 0.47), (0.53, 0.95)):
            self._panel(cabin["side"], (start, end), (0.12, 0.85), shade(glass, 0.85))
        self._panel(cabin["near"], (0.06, 0.94), (0.12, 0.85), glass)
        self._panel(body["side"], (0.0, 1.0), (0.0, 0.16), shade(colour, 0.5))
        self._panel(body["side"], (0.49, 0.51), (0.16, 1.0), shade(colour, 0.6))
        self._tail(body["near"], 0.5, 0.8, front)
        self._wheels(thing, label, (0.18, 0.8), 0.34)

    def _truck(self, thing: Thing) -> None:
        label, cargo, cab, glass = TRAIN_ID["truck"], self.colour("truck"), self.colour("truck"), self.colour("glass")
        front = thing.x + thing.width / 2 < 0
        self._shadow(thing, label, 0.5)
        self._box(thing, label, (58, 58, 62), (0.45, 0.9))
        parts = [((0.27, 1.0), False), ((0.0, 0.24), True)] if front else [((0.76, 1.0), True), ((0.0, 0.73), False)]
        for span, is_cab in parts:  # the far part first
            top = thing.height * 0.78 if is_cab else thing.height
            faces = self._box(thing, label, cab if is_cab else cargo, (0.7 if is_cab else 0.95, top), span)
            if is_cab:
                self._panel(faces["near"], (0.08, 0.92), (0.48, 0.88), glass)
                self._panel(faces["side"], (0.15, 0.85), (0.5, 0.88), glass)
                self._tail(faces["near"], 0.1, 0.24, front)
            else:
                self._panel(faces["near"], (0.48, 0.52), (0.0, 1.0), shade(cargo, 0.6))
                for band in (0.33, 0.66):
                    self._panel(faces["side"], (band, band + 0.015), (0.0, 1.0), shade(cargo, 0.7))
                self._panel(faces["side"], (0.1, 0.9), (0.4, 0.62), shade(self.colour("sign"), 0.9))
        self._wheels(thing, label, (0.12, 0.24, 0.85), 0.5)

    def _coach(
        self, thing: Thing, name: str, belt: tuple[float, float], windows: int, stripe: Colour
    ) -> dict[str, Place]:
        """A long body with a row of windows."""
        label, colour, glass = TRAIN_ID[name], self.colour(name), self.colour("glass")
        faces = self._box(thing, label, colour, (0.35, thing.height), lean=(0.08, 0.08, 0.05))
        for window in range(windows):
            start = (window + 0.08) / windows
            lit = _LIT[0] if self.light.night else shade(glass, self.rng.uniform(0.85, 1.2))
            self._panel(faces["side"], (start, start + 0.84 / windows), belt, lit)
        self._panel(faces["near"], (0.08, 0.92), (belt[0] - 0.08, belt[1]), glass)
        self._panel(faces["side"], (0.0, 1.0), (0.16, 0.26), stripe)
        self._panel(faces["near"], (0.0, 1.0), (0.16, 0.26), stripe)
        self._tail(faces["near"], 0.05, 0.14, thing.x + thing.width / 2 < 0)
        return faces

    def _bus(self, thing: Thing) -> None:
        self._shadow(thing, TRAIN_ID["bus"], 0.5)
        faces = self._coach(thing, "bus", (0.45, 0.82), 6, shade(self.colour("bus"), 0.6))
        self._panel(faces["near"], (0.25, 0.75), (0.87, 0.95), (240, 150, 40))  # the destination
        self._wheels(thing, TRAIN_ID["bus"], (0.2, 0.78), 0.5)

    def _train(self, thing: Thing) -> None:
        """A tram: longer than a bus, on rails, with a skirt instead of wheels and a bow to the overhead wire."""
        label = TRAIN_ID["train"]
        self._shadow(thing, label, 0.3)
        self._box(thing, label, (70, 72, 76), (0.1, 0.4))
        faces = self._coach(thing, "train", (0.42, 0.86), 12, (236, 234, 226))
        for joint in (0.33, 0.66):
            self._panel(faces["side"], (joint - 0.012, joint + 0.012), (0.0, 1.0), (48, 48, 52))
        x, z = thing.x + thing.width / 2, thing.z + min(thing.length / 2, 6.0)
        for way in (-0.8, 0.8):
            self.canvas.bar((x, thing.height, z), (x + way, thing.height + 0.9, z), 0.12, (70, 70, 74), label)
