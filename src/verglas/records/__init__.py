"""What a job did, the verdict on it, and the table of all jobs; works without a project."""
