"""Domains: labelled data sets, by name or of your own."""
