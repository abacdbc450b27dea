"""Source training: the segmentation model that is adapted later."""

from __future__ import annotations

from tmt_d2.adaptation.task import Task


class Source(Task):
    name = "source"
    about = "train on the labeled source domain"
    starts_from = ""
    architecture = ""
    fine_tunes = False
