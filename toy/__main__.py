"""Make the built-in world's files (world.py):

    python -m toy --out out/toy
"""
from common import cli
from toy.world import main

if __name__ == "__main__":
    cli.run(main)
