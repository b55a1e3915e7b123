"""The report: one self-contained HTML file that opens with the answer."""

from repaudit.report.page import write_report

__all__ = ["write_report"]
