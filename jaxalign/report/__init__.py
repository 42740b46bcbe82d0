"""A run's story as one self-contained page: what was claimed, what was measured, how every stage learned."""

from jaxalign.report.page import write_report

__all__ = ["write_report"]
