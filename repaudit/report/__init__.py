"""The report: one HTML file that opens with the answer and needs nothing beside it."""

from repaudit.report.page import write_report

__all__ = ["write_report"]
