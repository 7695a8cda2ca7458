"""The command line of `python -m flows.train_flow`, read and checked before Prefect is imported: that takes seconds."""

import argparse
import json
import sys
from collections.abc import Sequence

from flows.form import RunChoices, TrainingChoices, make_config
from textgen.commands.arguments import add_configuration
from textgen.config import Config
from textgen.errors import carry_out
from textgen.model.find import find_named, find_start
from textgen.storage import Storage
from textgen.terminal import say
from textgen.text.corpus import raw_folder
from textgen.text.local_files import NO_TEXT_YET, is_awaited
from textgen.text.tokenizer import find_tokenizer_file


def read_command(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command.

    End the process with one line if what they name cannot be used, or if there is no text yet.
    """
    parser = argparse.ArgumentParser(
        prog="python -m flows.train_flow", description="Fetch, tokenize, train, evaluate and publish."
    )
    add_configuration(parser)
    parser.add_argument("--force", action="store_true", help="train again though nothing changed")
    parser.add_argument("--refresh", action="store_true", help="ask the Hub for the newest commit of the data")
    parser.add_argument("--json", action="store_true", help="print one JSON document in place of the summary")
    options = parser.parse_intermixed_args(arguments)
    if code := carry_out(lambda: check_command(options)):
        sys.exit(code)
    return options


def check_command(options: argparse.Namespace) -> None:
    """Check what needs neither the network nor a Prefect server; end the process if there is no text yet.

    Raises:
        InputError: the configuration is wrong, or something that it names is absent or unusable.
        Damaged: a file of the model to start from is not what its manifest says.
    """
    config = make_config(options.config, TrainingChoices(), RunChoices(), options.overrides)
    if is_awaited(config.data.files):
        say(json.dumps({"message": NO_TEXT_YET}) if options.json else NO_TEXT_YET)
        sys.exit(0)
    check_files(config)
    check_training(config)


def check_files(config: Config) -> None:
    """Check that the local files are there.

    Raises:
        InputError: one of them is absent or unusable.
    """
    storage = Storage(config.storage)
    storage.check_writable()
    raw_folder(config.data, storage)
    if config.tokenizer.version is None:
        find_tokenizer_file(config.tokenizer, storage)


def check_training(config: Config) -> None:
    """Check that the models, the devices and the compiler that are named are there, where no network is needed.

    Raises:
        InputError: one of them is absent or unusable.
        Damaged: a file of the model is not what its manifest says.
    """
    training = config.training
    if config.tokenizer.version is not None and not config.storage.is_remote:
        find_named("tokenizer.path", config.tokenizer.path, config, Storage(config.storage))
    is_local = training.init_from is not None and ("@" not in training.init_from or not config.storage.is_remote)
    if is_local and find_start(config, Storage(config.storage)) is not None:
        from textgen.training.warm_start import initial_sha256  # loads torch

        initial_sha256(config)
    asked_for = training.device == "cuda" or training.devices != "auto" or training.compile is True
    if config.compute.gpu_deployment is None and asked_for:
        from textgen.model.device import check_compiler, choose_device  # loads torch
        from textgen.training.launch import processes_to_start

        processes_to_start(training)
        check_compiler(choose_device(training.device), training.compile)
