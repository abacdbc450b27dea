"""The five domains as plain data: streets, colors, light and camera of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tmt_d2.projects.street_scenes.scene import StreetStyle

if TYPE_CHECKING:
    from tmt_d2.projects.street_scenes.canvas import Color


@dataclass(frozen=True)
class Light:
    """One kind of light or weather.

    Attributes:
        share: relative frequency.
        gain: factor on red, green, blue: the color cast.
        saturation, contrast: 1 = as painted.
        sky: colors at the top of the image and at the horizon.
        haze: share of the horizon color mixed in per meter.
        night: lamps, headlights and windows are lit.
        shadow: brightness of faces that the sun does not reach; 1 = overcast.
    """

    sky: tuple[Color, Color]
    share: float = 1.0
    gain: Color = (1.0, 1.0, 1.0)
    saturation: float = 1.0
    contrast: float = 1.0
    haze: float = 0.004
    night: bool = False
    shadow: float = 0.85


@dataclass(frozen=True)
class Domain:
    """One domain. Colors are RGB 0-255; one of each name is drawn for each thing."""

    street: StreetStyle
    colors: Mapping[str, tuple[Color, ...]]
    lights: tuple[Light, ...]
    windows: str  # "upright", "band", "grid" or "square": layout of the fronts of houses
    grain: float  # strength of the surface textures
    grain_size: tuple[int, int]  # cells of the texture over the image's (height, width)
    tiles: bool = False  # textures are flat tiles
    boxy: float = 0.0  # 0 = cars with slanted windshields, 1 = boxes
    crown: str = "round"  # trees: "round", "tall" or "palm"
    noise: float = 0.0  # of the camera, in gray levels
    blur: float = 0.0  # sigma in pixels at a height of 128
    sharpen: float = 0.0
    vignette: float = 0.0
    hood: bool = False  # the hood of the camera's car is visible (ignored pixels)
    sizes: tuple[tuple[float, float], ...] = ((1.0, 1.0),)  # factors on the requested (height, width)


_COMMON: dict[str, tuple[Color, ...]] = {
    "tire": ((28, 28, 30),), "skin": ((224, 180, 150), (190, 140, 110), (120, 82, 60)), "trunk": ((92, 74, 58),),
    "marking": ((225, 225, 220),), "shadow": ((52, 52, 56),), "rail": ((150, 150, 155),),
    "frame": ((40, 40, 45), (150, 40, 40), (60, 90, 140)), "sign": ((205, 40, 45), (45, 80, 170), (235, 200, 50)),
    "light": ((34, 38, 34),), "pole": ((120, 122, 122),), "glass": ((60, 70, 82),),
}  # fmt: skip

CITYSCAPES = Domain(
    street=StreetStyle(
        camera_height=(1.25, 1.45), horizon=(0.42, 0.47), focal=(0.85, 0.98), lanes=(2, 3), lane_width=3.1,
        sidewalk=(2.6, 4.2), floors=(3, 6), blocks={"building": 5.0, "park": 2.2, "wall": 1.3, "fence": 1.3},
    ),
    colors={
        **_COMMON,
        "road": ((112, 112, 114), (100, 101, 104)), "sidewalk": ((158, 150, 146), (148, 146, 146)),
        "building": ((196, 182, 156), (178, 166, 150), (206, 196, 178), (164, 142, 122)), "window": ((84, 92, 98),),
        "wall": ((128, 122, 116), (140, 128, 122)), "fence": ((72, 82, 78), (92, 96, 98)),
        "vegetation": ((74, 98, 58), (62, 88, 52), (88, 108, 66)), "terrain": ((122, 132, 84), (112, 124, 82)),
        "person": ((52, 54, 66), (92, 52, 52), (70, 80, 100), (130, 120, 108)),
        "trousers": ((46, 50, 66), (60, 56, 54)),
        "rider": ((180, 66, 52), (66, 100, 134), (86, 86, 60)),
        "car": ((34, 36, 42), (150, 154, 160), (196, 198, 200), (62, 70, 88), (96, 32, 34)),
        "truck": ((190, 190, 186), (70, 96, 130)), "bus": ((196, 162, 58), (190, 170, 80)),
        "train": ((178, 52, 48), (184, 60, 50)),
        "motorcycle": ((44, 44, 50), (120, 36, 36)),
    },
    lights=(
        Light(sky=((206, 214, 222), (228, 230, 230)), saturation=0.85, share=3.0),
        Light(sky=((156, 184, 216), (220, 226, 232)), saturation=0.95, contrast=1.05, shadow=0.75),
    ),
    windows="upright", grain=0.12, grain_size=(48, 96), noise=2.0, blur=0.35, hood=True,
)  # fmt: skip

BDD100K = Domain(
    street=StreetStyle(
        camera_height=(1.45, 1.75), horizon=(0.48, 0.56), focal=(0.72, 0.85), lanes=(3, 5), lane_width=3.6,
        sidewalk=(2.0, 3.4), floors=(1, 8), blocks={"building": 4.0, "park": 2.4, "wall": 1.4, "fence": 1.7},
        amounts={"parked car": 0.8, "moving car": 1.5, "truck": 1.3, "person": 0.8, "lamp": 1.2},
    ),
    colors={
        **_COMMON,
        "road": ((104, 106, 110), (116, 116, 118)), "sidewalk": ((170, 166, 156), (156, 154, 150)),
        "building": ((134, 68, 54), (150, 84, 62), (94, 110, 128), (110, 74, 62)),
        "window": ((178, 196, 206), (40, 52, 66)),
        "wall": ((184, 170, 144), (170, 160, 142)), "fence": ((150, 152, 152), (120, 96, 70)),
        "vegetation": ((96, 100, 44), (112, 104, 52), (76, 84, 40)), "terrain": ((170, 150, 96), (156, 142, 92)),
        "person": ((160, 160, 166), (40, 44, 52), (50, 90, 150), (170, 60, 60)),
        "trousers": ((40, 50, 84), (84, 82, 78)),
        "rider": ((40, 40, 44), (200, 120, 40)),
        "car": ((222, 222, 222), (168, 36, 36), (40, 60, 120), (30, 30, 32), (190, 180, 150)),
        "truck": ((226, 226, 220), (176, 60, 40), (220, 150, 40)), "bus": ((232, 232, 228), (60, 110, 180)),
        "train": ((150, 160, 170), (90, 120, 150)), "motorcycle": ((40, 40, 44), (150, 90, 30)),
        "pole": ((140, 130, 112), (96, 80, 64)), "light": ((200, 160, 40),),
        "sign": ((40, 120, 70), (220, 220, 220), (200, 50, 40)),
    },
    lights=(
        Light(sky=((164, 186, 200), (206, 214, 212)), gain=(0.88, 1.0, 0.98), contrast=1.05, share=2.0),
        Light(sky=((150, 152, 170), (220, 190, 168)), gain=(0.95, 0.82, 0.78),
              contrast=1.05, haze=0.006, shadow=0.65, share=2.0),
        Light(sky=((84, 94, 114), (126, 124, 128)), gain=(0.64, 0.59, 0.58),
              contrast=1.1, saturation=0.8, night=True, share=2.0),
        Light(sky=((160, 168, 174), (180, 186, 190)), gain=(0.76, 0.86, 0.92), saturation=0.6, haze=0.014),
    ),
    windows="band", grain=0.2, grain_size=(40, 80), noise=4.5, blur=0.5, vignette=0.25, hood=True,
)  # fmt: skip

MAPILLARY = Domain(
    street=StreetStyle(
        camera_height=(1.2, 2.4), horizon=(0.38, 0.56), focal=(0.62, 1.05), lanes=(2, 4), lane_width=3.2,
        sidewalk=(1.5, 4.0), floors=(1, 5), blocks={"building": 3.6, "park": 3.0, "wall": 1.6, "fence": 1.6},
        amounts={"motorcycle": 1.3, "motorcycle rider": 1.3, "person": 1.2}, terrain=0.75,
    ),
    colors={
        **_COMMON,
        "road": ((124, 118, 112), (104, 106, 110), (136, 130, 120)),
        "sidewalk": ((176, 160, 144), (150, 146, 142), (180, 140, 120)),
        "building": ((236, 232, 222), (230, 190, 120), (130, 176, 186), (214, 130, 110), (150, 120, 96)),
        "window": ((60, 72, 90), (120, 80, 56), (56, 96, 80)),
        "wall": ((206, 200, 190), (180, 104, 80), (120, 116, 110)),
        "fence": ((60, 110, 80), (196, 196, 196), (110, 84, 62)),
        "vegetation": ((56, 112, 48), (84, 124, 60), (44, 90, 56)), "terrain": ((120, 148, 76), (176, 152, 108)),
        "person": ((230, 220, 210), (200, 80, 60), (60, 60, 70), (230, 180, 60), (70, 120, 160)),
        "trousers": ((50, 60, 96), (110, 96, 80)), "rider": ((220, 210, 60), (60, 70, 90), (190, 60, 60)),
        "car": ((236, 236, 236), (190, 50, 46), (120, 126, 132), (60, 110, 170), (220, 190, 60)),
        "truck": ((60, 120, 180), (226, 176, 60), (230, 230, 226)), "bus": ((60, 150, 90), (230, 110, 50)),
        "train": ((236, 220, 190), (60, 90, 150)), "motorcycle": ((190, 40, 40), (40, 60, 120), (40, 40, 44)),
    },
    lights=(
        Light(sky=((150, 184, 222), (206, 220, 234)), contrast=1.1, saturation=1.05, shadow=0.65, share=3.0),
        Light(sky=((196, 200, 206), (222, 222, 220)), saturation=0.8, haze=0.006),
        Light(sky=((176, 192, 212), (238, 222, 196)), gain=(1.06, 1.0, 0.88), contrast=1.05, shadow=0.55),
        Light(sky=((160, 184, 214), (212, 222, 230)), gain=(0.9, 1.0, 1.1), saturation=0.9),
    ),
    windows="square", grain=0.14, grain_size=(56, 112), noise=3.0, blur=0.25, crown="tall", sharpen=0.3,
    sizes=((1.0, 1.0), (1.25, 0.85), (1.0, 0.9), (1.1, 1.1), (1.5, 1.0)),
)  # fmt: skip

GTAV = Domain(
    street=StreetStyle(
        camera_height=(1.6, 2.0), horizon=(0.44, 0.5), focal=(0.7, 0.8), lanes=(3, 4), lane_width=3.6,
        sidewalk=(2.6, 4.6), floors=(2, 12), blocks={"building": 4.6, "park": 2.2, "wall": 1.6, "fence": 1.3},
        amounts={"person": 1.1, "train": 0.9},
    ),
    colors={
        **_COMMON,
        "road": ((102, 103, 106), (110, 110, 112)), "sidewalk": ((172, 164, 150), (162, 156, 144)),
        "building": ((224, 178, 118), (196, 120, 84), (236, 206, 160), (120, 132, 150), (170, 94, 90)),
        "window": ((54, 104, 140), (38, 58, 84)), "wall": ((206, 170, 128), (160, 120, 96)),
        "fence": ((46, 46, 46), (140, 108, 66)),
        "vegetation": ((64, 118, 22), (96, 136, 28), (50, 96, 26)), "terrain": ((196, 176, 96), (138, 150, 50)),
        "person": ((240, 240, 236), (40, 130, 150), (220, 70, 110), (240, 170, 40)),
        "trousers": ((40, 56, 120), (130, 100, 66)),
        "rider": ((30, 30, 30), (240, 90, 30)),
        "car": ((220, 40, 30), (30, 90, 200), (240, 180, 20), (30, 30, 30), (60, 150, 70), (240, 240, 240)),
        "truck": ((210, 90, 30), (60, 80, 60), (236, 226, 206)), "bus": ((80, 90, 200), (236, 236, 240)),
        "train": ((220, 220, 220), (200, 170, 40)), "motorcycle": ((200, 30, 30), (40, 40, 40)),
        "marking": ((236, 200, 90), (236, 232, 220)), "light": ((60, 54, 30),), "pole": ((84, 80, 74),),
    },
    lights=(
        Light(sky=((148, 182, 218), (216, 220, 222)), gain=(1.05, 1.0, 0.92),
              saturation=1.2, contrast=1.06, shadow=0.6, share=2.0),
        Light(sky=((170, 180, 204), (234, 214, 190)), gain=(1.1, 0.98, 0.84), saturation=1.15,
              contrast=1.06, shadow=0.55),
    ),
    windows="grid", grain=0.09, grain_size=(56, 112), noise=1.5, sharpen=0.2, crown="palm",
)  # fmt: skip

SYNTHIA = Domain(
    street=StreetStyle(
        camera_height=(2.4, 3.6), horizon=(0.3, 0.38), focal=(0.6, 0.72), lanes=(2, 4), lane_width=3.4,
        sidewalk=(3.0, 5.5), floors=(2, 7), blocks={"building": 5.0, "park": 1.8, "wall": 1.0, "fence": 1.6},
        amounts={"truck": 0.0, "train": 0.0, "bus": 1.6, "person": 2.2, "bicycle rider": 1.8, "sign": 1.4},
        terrain=0.0,
    ),
    colors={
        **_COMMON,
        "road": ((116, 115, 119), (108, 108, 113)), "sidewalk": ((190, 176, 170), (166, 160, 176)),
        "building": ((150, 110, 150), (96, 140, 150), (190, 140, 150), (120, 120, 170)),
        "window": ((210, 226, 236), (50, 40, 70)),
        "wall": ((150, 160, 120), (176, 166, 140)), "fence": ((200, 190, 90), (90, 90, 130)),
        "vegetation": ((36, 110, 84), (60, 134, 96), (28, 90, 60)), "terrain": ((120, 150, 90),),
        "person": ((240, 120, 60), (80, 60, 160), (60, 160, 120), (230, 220, 120)),
        "trousers": ((90, 50, 90), (60, 60, 140)),
        "rider": ((120, 200, 220), (220, 90, 160)),
        "car": ((110, 200, 150), (240, 160, 180), (160, 120, 220), (240, 240, 170), (90, 170, 220)),
        "truck": ((200, 120, 160),), "bus": ((220, 80, 90), (90, 200, 120)), "train": ((200, 200, 240),),
        "motorcycle": ((180, 60, 180), (60, 120, 200)), "pole": ((170, 160, 90),), "light": ((70, 50, 110),),
        "sign": ((60, 60, 220), (230, 60, 200)), "glass": ((30, 26, 52),), "marking": ((240, 240, 250),),
    },
    lights=(
        Light(sky=((150, 182, 226), (204, 216, 236)), haze=0.001, shadow=0.7),
        Light(sky=((186, 190, 206), (218, 216, 226)), gain=(0.96, 0.94, 1.06), haze=0.001, shadow=0.8),
    ),
    windows="square", grain=0.13, grain_size=(32, 64), tiles=True, boxy=1.0, crown="tall",
)  # fmt: skip

DOMAINS: dict[str, Domain] = {
    "cityscapes": CITYSCAPES, "bdd100k": BDD100K, "mapillary": MAPILLARY, "gtav": GTAV, "synthia": SYNTHIA,
}  # fmt: skip
