"""What a job leaves about itself: record, verdict, and the table of all jobs. Works without a project."""
