"""Plots and galleries that jobs and reports leave."""
