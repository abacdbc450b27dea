"""From a painted canvas to what a camera of the domain would have filmed: texture, haze, light, lens and noise."""

from __future__ import annotations

import cv2
import numpy as np

from tmt_d2.data.datasets.label_spaces import IGNORE, TRAIN_ID
from tmt_d2.projects.street_scenes.canvas import Colour
from tmt_d2.projects.street_scenes.domains import Domain, Light

_GREY = np.array([0.299, 0.587, 0.114], np.float32)
# How rough the surfaces are, relative to the domain's grain; all others: 0.3.
_ROUGHNESS = {
    "vegetation": 2.0,
    "terrain": 1.4,
    "building": 0.7,
    "wall": 1.2,
    "road": 0.35,
    "sidewalk": 0.6,
    "sky": 0.08,
}


def film(
    image: np.ndarray,
    label: np.ndarray,
    depth: np.ndarray,
    glow: list[tuple[float, float, float, Colour]],
    domain: Domain,
    light: Light,
    rng: np.random.Generator,
) -> np.ndarray:
    """What a camera of the domain makes of a painting.

    image (H, W, 3) float32 0-255, label (H, W), depth (H, W) in metres, light sources as (x, y, radius) in pixels
    and a colour -> (H, W, 3) uint8 RGB.
    """
    height, width = label.shape
    strength = np.full(256, 0.3, np.float32)
    for name, roughness in _ROUGHNESS.items():
        strength[TRAIN_ID[name]] = roughness
    strength[IGNORE] = 0.0
    texture = _texture(domain, (height, width), rng)
    image = image * (1 + domain.grain * strength[label] * texture)[..., None]

    share = 1 - np.exp(-light.haze * depth)[..., None]
    image = image * (1 - share) + np.array(light.sky[1], np.float32) / np.array(light.gain, np.float32) * share
    exposure = rng.uniform(0.85, 1.15) * rng.uniform(0.96, 1.04, 3)  # no camera meters and balances white exactly
    image = image * (np.array(light.gain) * exposure).astype(np.float32)
    grey = (image @ _GREY)[..., None]
    image = grey + light.saturation * (image - grey)
    image = 118 + light.contrast * (image - 118) if not light.night else image
    image = image + _shine(glow, (height, width))

    scale = height / 128
    if domain.blur:
        image = cv2.GaussianBlur(image, (0, 0), domain.blur * scale)
    if domain.sharpen:
        image = image + domain.sharpen * (image - cv2.GaussianBlur(image, (0, 0), 1.0 * scale))
    if domain.vignette:
        y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None]
        image = image * (1 - domain.vignette * (x**2 + y**2) / 2)[..., None]
    if domain.noise:
        image = (
            image
            + rng.normal(0, domain.noise, (height, width, 1))
            + rng.normal(0, domain.noise / 2, (height, width, 3))
        )
    return np.clip(image, 0, 255).astype(np.uint8)


def _texture(domain: Domain, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """(H, W) float32 with mean 0 and a spread of about 1: fine cells and patches four times as large."""
    rows, columns = domain.grain_size
    fine = rng.normal(0, 1, (rows, columns)).astype(np.float32)
    coarse = rng.normal(0, 1, (max(rows // 4, 1), max(columns // 4, 1))).astype(np.float32)
    if domain.tiles:
        return cv2.resize(np.sign(fine), size[::-1], interpolation=cv2.INTER_NEAREST)
    how = cv2.INTER_CUBIC
    return 0.6 * cv2.resize(fine, size[::-1], interpolation=how) + 0.8 * cv2.resize(
        coarse, size[::-1], interpolation=how
    )


def _shine(glow: list[tuple[float, float, float, Colour]], size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) float32 light of lamps, as halos."""
    shine = np.zeros((*size, 3), np.float32)
    rows, columns = np.ogrid[0 : size[0], 0 : size[1]]
    for x, y, radius, colour in glow:
        spread = min(max(radius, size[0] / 128), size[0] / 14) * 1.5
        halo = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * spread**2))
        shine += 0.7 * halo[..., None] * np.array(colour, np.float32)
    return shine
