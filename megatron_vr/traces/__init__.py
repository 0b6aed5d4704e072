"""What was said: the tables between the stages and the resumable store of their parts."""
