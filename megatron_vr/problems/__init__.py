"""What is asked: problems and their sources, prompts, hints and markers."""
