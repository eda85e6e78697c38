"""Networks, as plain modules and as data."""

from lottery_nb._moved import served

__getattr__ = served("models")
