"""Training from scene stores. Installs and runs without anything of preparation."""
