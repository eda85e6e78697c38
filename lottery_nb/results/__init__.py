"""Statistics, tables, verdicts, figures and reports."""
