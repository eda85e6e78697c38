"""Snapshots, rewind points and controls: what a ticket starts from, and what it is held against."""

from lottery_nb._moved import served

__getattr__ = served("rewinding")
