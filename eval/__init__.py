"""Evaluation: predictions, judges, statistics, tables and the report."""
