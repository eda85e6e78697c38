"""The two papers as plans."""

from lottery_nb._moved import served

__getattr__ = served("papers")
