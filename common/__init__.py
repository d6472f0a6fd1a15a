"""What the programs are built on. Read it when you need it."""
