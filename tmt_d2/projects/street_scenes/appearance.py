"""Texture, haze, light, lens and noise of a domain's camera."""

from __future__ import annotations

import cv2
import numpy as np

from tmt_d2.data.datasets.label_spaces import IGNORE, TRAIN_ID
from tmt_d2.projects.street_scenes.canvas import Color
from tmt_d2.projects.street_scenes.domains import Domain, Light

_GRAY = np.array([0.299, 0.587, 0.114], np.float32)
_ROUGHNESS = {  # strength of the texture, relative to the domain's grain; other classes: 0.3
    "vegetation": 2.0, "terrain": 1.4, "building": 0.7, "wall": 1.2, "road": 0.35, "sidewalk": 0.6, "sky": 0.08,
}  # fmt: skip


def film(
    image: np.ndarray,
    label: np.ndarray,
    depth: np.ndarray,
    glow: list[tuple[float, float, float, Color]],
    domain: Domain,
    light: Light,
    rng: np.random.Generator,
) -> np.ndarray:
    """Turn a painting into an image of the domain's camera.

    Args:
        image: (H, W, 3) float32 0-255. label: (H, W). depth: (H, W), meters.
        glow: light sources, (x, y, radius) in pixels and color.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    height, width = size = label.shape
    strength = np.full(256, 0.3, np.float32)
    for name, roughness in _ROUGHNESS.items():
        strength[TRAIN_ID[name]] = roughness
    strength[IGNORE] = 0.0
    image = image * (1 + domain.grain * strength[label] * _texture(domain, size, rng))[..., None]

    share = 1 - np.exp(-light.haze * depth)[..., None]
    image = image * (1 - share) + np.array(light.sky[1], np.float32) / np.array(light.gain, np.float32) * share
    exposure = rng.uniform(0.85, 1.15) * rng.uniform(0.96, 1.04, 3)  # metering and white balance are never exact
    image = image * (np.array(light.gain) * exposure).astype(np.float32)
    gray = (image @ _GRAY)[..., None]
    image = gray + light.saturation * (image - gray)
    image = 118 + light.contrast * (image - 118) if not light.night else image
    image = image + _shine(glow, size)

    scale = height / 128
    if domain.blur:
        image = cv2.GaussianBlur(image, (0, 0), domain.blur * scale)
    if domain.sharpen:
        image = image + domain.sharpen * (image - cv2.GaussianBlur(image, (0, 0), 1.0 * scale))
    if domain.vignette:
        y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None]
        image = image * (1 - domain.vignette * (x**2 + y**2) / 2)[..., None]
    if domain.noise:
        image = image + rng.normal(0, domain.noise, (*size, 1)) + rng.normal(0, domain.noise / 2, (*size, 3))
    return np.clip(image, 0, 255).astype(np.uint8)


def _texture(domain: Domain, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """(H, W) float32 with mean 0 and a spread of about 1: fine cells, and patches four times as large."""
    rows, columns = domain.grain_size
    fine = rng.normal(0, 1, (rows, columns)).astype(np.float32)
    coarse = rng.normal(0, 1, (max(rows // 4, 1), max(columns // 4, 1))).astype(np.float32)
    if domain.tiles:
        return cv2.resize(np.sign(fine), size[::-1], interpolation=cv2.INTER_NEAREST)
    smooth = [cv2.resize(each, size[::-1], interpolation=cv2.INTER_CUBIC) for each in (fine, coarse)]
    return 0.6 * smooth[0] + 0.8 * smooth[1]


def _shine(glow: list[tuple[float, float, float, Color]], size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) float32 halos of the light sources."""
    shine = np.zeros((*size, 3), np.float32)
    rows, columns = np.ogrid[0 : size[0], 0 : size[1]]
    for x, y, radius, color in glow:
        spread = min(max(radius, size[0] / 128), size[0] / 14) * 1.5
        halo = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * spread**2))
        shine += 0.7 * halo[..., None] * np.array(color, np.float32)
    return shine
