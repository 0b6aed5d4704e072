"""Who judges: verifiers by kind of problem, in processes that can be killed."""
