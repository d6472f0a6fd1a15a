"""What the programs stand on: read when needed."""
