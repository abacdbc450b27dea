"""Pictures of what a model sees: overlays, panels, and reports of attention and transferability."""

from .figures import prediction_figure, query_figure, transferability_figure
from .grid import Grid
from .panels import Panel, Row, Scale, draw, save, to_array
from .report import AttentionReport, Selection, attention_report

__all__ = [
    "AttentionReport",
    "Grid",
    "Panel",
    "Row",
    "Scale",
    "Selection",
    "attention_report",
    "draw",
    "prediction_figure",
    "query_figure",
    "save",
    "to_array",
    "transferability_figure",
]
