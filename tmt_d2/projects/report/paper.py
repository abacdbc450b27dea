"""The table of arXiv 2504.05774: mIoU in percent of every ordered pair, by method."""

from __future__ import annotations

LETTERS = {"C": "cityscapes", "B": "bdd100k", "M": "mapillary", "S": "synthia", "G": "gtav"}
METHODS = ("linear", "full", "leep", "otce", "tmt")
_MIOU = """
C-B 55.0 62.2 62.8 63.0 64.5
C-M 67.3 70.7 71.1 71.4 72.7
C-S 43.8 75.8 76.2 76.5 77.8
C-G 56.7 69.2 69.5 69.8 71.2
B-C 47.3 54.7 55.2 55.5 57.5
B-M 47.0 46.9 47.3 47.6 49.0
B-S 29.3 53.0 53.4 53.7 55.8
B-G 39.8 52.0 52.5 52.8 54.8
M-C 72.4 73.6 73.2 72.8 73.0
M-B 61.9 63.0 62.7 62.3 62.5
M-S 48.8 67.3 68.5 69.8 69.5
M-G 64.4 71.7 72.5 73.8 73.5
S-C 31.1 50.9 51.2 51.5 53.5
S-B 22.7 37.6 38.0 38.2 41.1
S-M 28.7 43.7 44.0 44.3 44.0
S-G 28.4 49.7 50.0 50.3 51.8
G-C 38.3 57.0 57.5 57.8 59.5
G-B 30.2 42.3 42.8 43.0 44.8
G-M 40.9 48.4 48.8 49.0 51.0
G-S 27.8 57.2 57.6 57.9 59.5
"""


def paper_miou() -> dict[tuple[str, str], dict[str, float]]:
    """{(source, target): {method: mIoU}}"""
    table = {}
    for line in _MIOU.split("\n")[1:-1]:
        pair, *values = line.split()
        source, target = (LETTERS[letter] for letter in pair.split("-"))
        table[source, target] = dict(zip(METHODS, map(float, values)))
    return table
