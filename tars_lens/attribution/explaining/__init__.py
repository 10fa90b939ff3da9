"""What an erasure did, as the tables that its report is drawn from."""

from tars_lens.attribution.explaining.tables import explain

__all__ = ["explain"]
