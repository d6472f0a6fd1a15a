"""The built-in world: a small English and Korean corpus and a toy KoBEST, generated (world.py)."""
