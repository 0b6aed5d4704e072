"""Charts as PNG bytes, each from plain numbers; matplotlib's objects, no global figure."""
