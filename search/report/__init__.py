"""The report of a run: one HTML file from which a person chooses a model."""

from search.report.document import write_report
from search.runs.saved_run import RankingView

__all__ = ["RankingView", "write_report"]
