"""Many concepts, models, seeds and methods as independent jobs on one machine or many."""

from tars_lens.experiments.sweeping.jobs import Job, read_spec
from tars_lens.experiments.sweeping.results import sweep_table
from tars_lens.experiments.sweeping.sweep import Sweep, sweep

__all__ = ["Job", "Sweep", "read_spec", "sweep", "sweep_table"]
