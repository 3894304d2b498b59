"""The operators' web page: files that are served as they are, and call the same routes as everybody else."""
