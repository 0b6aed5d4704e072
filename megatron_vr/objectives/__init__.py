"""The mathematics of variational reasoning: tensors in, tensors out."""
