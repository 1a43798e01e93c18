"""Configuration from YAML files and the command line, checked against the dataclasses."""

from collections.abc import Sequence
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from jsonargparse import ArgumentError, ArgumentParser, Namespace

T = TypeVar("T")


def packaged_config(name: str) -> str:
    """Path of a configuration that comes with the package, such as "demo"."""
    return str(resources.files("puma_plugin") / "configs" / f"{name}.yaml")


def find_config(name: str) -> str:
    """A configuration file by its path, or one that comes with the package by its name ("paper" or "paper.yaml").

    Raises:
        ValueError: if there is neither; the message lists the package's.
    """
    if Path(name).is_file():
        return name
    packaged = sorted(Path(entry.name).stem for entry in (resources.files("puma_plugin") / "configs").iterdir())
    if name.removesuffix(".yaml") in packaged:
        return packaged_config(name.removesuffix(".yaml"))
    raise ValueError(f"{name} is no file; give a YAML file, or the name of one in the package: {', '.join(packaged)}")


def _find_configs(arguments: Sequence[str]) -> list[str]:
    """The arguments with every value of --config replaced by the file it means."""
    found = list(arguments)
    for index, argument in enumerate(arguments):
        if argument == "--config" and index + 1 < len(arguments):
            found[index + 1] = find_config(arguments[index + 1])
        elif argument.startswith("--config="):
            found[index] = "--config=" + find_config(argument.removeprefix("--config="))
    return found


def make_parser(command: str, description: str, config_class: type, defaults: Sequence[str] = ()) -> ArgumentParser:
    """A parser whose options are the fields of `config_class`, with `--config` for YAML files.

    Args:
        command: the subcommand's name.
        description: shown by --help.
        config_class: the dataclass; nested fields are given as `--data.workers 4`.
        defaults: YAML files that give the defaults.
    """
    parser = ArgumentParser(
        prog=f"puma {command}", description=description, exit_on_error=False, default_config_files=list(defaults)
    )
    parser.add_argument(
        "--config",
        action="config",
        help="YAML file with settings, or the name of one in the package; options given after it win",
    )
    parser.add_class_arguments(config_class, fail_untyped=True)
    return parser


def parse(parser: ArgumentParser, config_class: type[T], arguments: Sequence[str]) -> tuple[T, Namespace]:
    """The checked configuration, and the parsed options.

    Raises:
        ValueError: for an unknown option, a value of the wrong type, or one that the configuration refuses.
    """
    try:
        options = parser.parse_args(_find_configs(arguments))
        built = parser.instantiate(options)
    except ArgumentError as error:
        raise ValueError(f"{error} (see `{parser.prog} --help`)") from error
    values: dict[str, Any] = {field.name: built[field.name] for field in fields(config_class)}  # type: ignore[arg-type]
    return config_class(**values), options
