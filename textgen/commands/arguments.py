"""What the arguments of several commands have in common."""

import argparse
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

MODEL_HELP = "a published or a training folder, NAME@champion or NAME@v3"
ROOT_HELP = "the storage root that has models/: a folder or an fsspec URL"
