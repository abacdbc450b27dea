"""Pictures of what a model sees: overlays, panels, and reports of attention and transferability."""

from .figures import prediction_figure, query_figure, transferability_figure
from .grid import Grid
from .panels import Panel, Row, Scale, draw, save, to_array
from .report import AttentionReport, Wanted, attention_report
from .statistics import collect, statistics_figure, table

__all__ = [
    "AttentionReport",
    "Grid",
    "Panel",
    "Row",
    "Scale",
    "Wanted",
    "attention_report",
    "collect",
    "draw",
    "prediction_figure",
    "query_figure",
    "save",
    "statistics_figure",
    "table",
    "to_array",
    "transferability_figure",
]
