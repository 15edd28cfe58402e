"""A run folder becomes one self-contained report.html: no script, no network, readable on a phone and in print."""

from aha.report.page import render, write

__all__ = ["render", "write"]
