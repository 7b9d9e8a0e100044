"""Runs jobs and recipes: locks, times, records, measures, checks, judges."""
