"""A project on disk, RELION's way: job folders, numbering, pipeline graph."""
