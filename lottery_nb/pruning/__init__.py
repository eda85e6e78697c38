"""Masks, schedules, criteria and scopes: which weights stay."""

from lottery_nb._moved import served

__getattr__ = served("pruning")
