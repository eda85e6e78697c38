"""Adds one thing of each kind to lottery_nb, from outside: nothing in lottery_nb knows of it."""
