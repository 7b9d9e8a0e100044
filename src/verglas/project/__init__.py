"""A project on disk, as RELION 3.1 lays it out: job folders, numbering, the graph of jobs and files, aliases."""
