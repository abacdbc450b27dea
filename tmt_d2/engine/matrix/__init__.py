"""Many pairs at once: sources x targets x methods x seeds x label fractions, and sweeps, from one YAML file.

``plan`` reads the file, ``units`` makes stages of it, each with a folder of its own, ``running`` runs those that are
missing (``slurm``: as jobs), ``progress`` says what became of them and ``estimate`` what they will take. ``stage.json``
in a unit's folder, written last, says that it is done, so a run may be killed at any moment and the same command goes
on. Source models and estimators are units that others share. There is no scheduler here, only an order.
"""

from .estimate import Estimate
from .plan import KINDS, Plan, Sweep, read_plan
from .progress import Progress
from .running import check_units, claimed, run_all, run_recorded, run_unit
from .slurm import parse_parameters, run_on_slurm, waves
from .units import SCORES_FILE, Unit, select, units_of

__all__ = [
    "KINDS",
    "SCORES_FILE",
    "Estimate",
    "Plan",
    "Progress",
    "Sweep",
    "Unit",
    "check_units",
    "claimed",
    "parse_parameters",
    "read_plan",
    "run_all",
    "run_on_slurm",
    "run_recorded",
    "run_unit",
    "select",
    "units_of",
    "waves",
]
