"""Reading training items from scene stores, augmenting them, and collating them into batches."""
