"""What a run shows: one HTML page and its plots, and what is installed here."""
