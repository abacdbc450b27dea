"""Tasks: the ways to train a model for a target domain, one per file, and the registry of them."""

from tmt_d2.adaptation.alignment import Leep, Otce
from tmt_d2.adaptation.estimator import Estimator
from tmt_d2.adaptation.self_training.task import FullEma, SelfTraining
from tmt_d2.adaptation.source import Source
from tmt_d2.adaptation.supervised import Full, LinearProbing
from tmt_d2.adaptation.task import TASKS, Task, register, task_of
from tmt_d2.adaptation.tmt import Tmt

__all__ = ["BASELINE", "OURS", "TASKS", "Task", "register", "task_of"]

for _task in (
    Source,
    Estimator,
    LinearProbing,
    Full,
    Leep,
    Otce,
    FullEma,
    SelfTraining,
    Tmt,
):  # in the order of reports
    register(_task)

BASELINE = Full.name  # the method that others are compared with
OURS = Tmt.name
