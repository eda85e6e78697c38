"""Folders that hold a plan, its log and its results."""

from lottery_nb._moved import served

__getattr__ = served("runs")
