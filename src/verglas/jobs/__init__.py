"""One module a job type: its declaration and a thin `run`."""
