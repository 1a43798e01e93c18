"""Configuration from YAML files and the command line, checked against the dataclasses."""

from collections.abc import Sequence
from dataclasses import fields
from importlib import resources
from typing import Any, TypeVar

from jsonargparse import ArgumentError, ArgumentParser, Namespace

T = TypeVar("T")


def packaged_config(name: str) -> str:
    """Path of a configuration that comes with the package, such as "demo"."""
    return str(resources.files("puma_plugin") / "configs" / f"{name}.yaml")


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
    parser.add_argument("--config", action="config", help="YAML file with settings; options given after it win")
    parser.add_class_arguments(config_class, fail_untyped=True)
    return parser


def parse(parser: ArgumentParser, config_class: type[T], arguments: Sequence[str]) -> tuple[T, Namespace]:
    """The checked configuration, and the parsed options.

    Raises:
        ValueError: for an unknown option, a value of the wrong type, or one that the configuration refuses.
    """
    try:
        options = parser.parse_args(list(arguments))
        built = parser.instantiate(options)
    except ArgumentError as error:
        raise ValueError(f"{error} (see `{parser.prog} --help`)") from error
    values: dict[str, Any] = {field.name: built[field.name] for field in fields(config_class)}  # type: ignore[arg-type]
    return config_class(**values), options
