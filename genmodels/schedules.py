"""Schedules over a stage: functions of the fraction done, in [0, 1]."""

from __future__ import annotations


def linear_decay(fraction: float, start: float) -> float:
    """1 until `start` of the stage, then down to 0 along a line; start in [0, 1]."""
    return 1.0 if fraction <= start else (1 - fraction) / (1 - start)


def log_decay(fraction: float, first: float, last: float) -> float:
    """From `first` to `last`, both positive, along a line of logarithms."""
    return first * (last / first) ** fraction
