"""Algorithm 1: its stages, the plan of a run, and the runner that resumes it."""
