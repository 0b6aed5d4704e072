"""Who speaks: engines that continue token prompts, and the seeds that make them repeatable."""
