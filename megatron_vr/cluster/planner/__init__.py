"""Whether a run fits its GPUs and how long it takes, before anything is started. Pure."""
