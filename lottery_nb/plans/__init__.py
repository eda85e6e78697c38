"""Experiments as data: tickets, searches, transfers."""
