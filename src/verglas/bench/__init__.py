"""The benchmark: data tiers, repeats, tables, report."""
