"""Jobs of a Slurm cluster: planned, submitted, watched, ended."""
