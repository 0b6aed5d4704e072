"""Weighted training and the scoring pass: batches, loop, optimizer, checkpoints, metrics."""
