"""Runs and judges jobs, one at a time or as the steps of a recipe."""
