"""The sections of a run's page: each measures its tables and words what they show."""
