"""`rw3d-train compare`: a table of trainings, methods × labels × seeds, and a report of it."""
