"""The parts of `benchmarks/engines.py`: what is asked of each engine, its runs, their scores against truth, the table."""
