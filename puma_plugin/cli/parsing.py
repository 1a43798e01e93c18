"""Configuration from YAML files and the command line, checked against the dataclasses."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

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
        prog=f"puma {command}",
        description=description,
        exit_on_error=False,
        default_config_files=list(defaults),
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        action="config",
        help="YAML file with settings, or the name of one in the package; options given after it win",
    )
    parser.add_class_arguments(config_class, fail_untyped=True)
    return parser


def _wanted(kinds: str, name: str, value: str) -> str:
    if literal := re.fullmatch(r"typing\.Literal\[(.*)\]", kinds):
        return f"one of {literal[1]}"
    parts = [re.sub(r"<class '(.*)'>", r"\1", kind) for kind in re.split(r", (?![^\[]*\])", kinds)]
    wanted = " or ".join(_WORDS.get(part, part) for part in parts)
    return f"{wanted}, as in --{name} '[{value}]'" if "list" in wanted and not value.startswith("[") else wanted


_WORDS = {
    "list": "a list",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "NoneType": "null",
    "list[str]": """a list of texts, numbers in quotes ('["2019", "birds"]')""",
}


def in_words(message: str, parser: ArgumentParser) -> str:
    """What jsonargparse refuses, as this package says it: the setting, what came, what is accepted."""
    if found := re.match(r"unrecognized arguments: (.*)", message):
        known = [option for action in parser._actions for option in action.option_strings]
        names = [word.partition("=")[0] for word in found[1].split() if word.startswith("--")]
        near = {name: difflib.get_close_matches(name, known, 1) for name in names}
        hints = [f"for {name} perhaps {close[0]}" for name, close in near.items() if close]
        return "; ".join([message, *hints])
    kinds = re.search(r"Subtypes: \[(.*)\]\n|Expected an? (.*)\. Got value", message)
    found = re.match(r'(?s)Parser key "(.*?)":.*(?:Got value|Given value): (.*)', message)
    if kinds and found:
        name, value = found[1], found[2].strip()
        return f"{name} is {value!r}; give {_wanted(kinds[1] or kinds[2], name, value)}"
    if message.startswith("Option 'train.") and not parser.prog.endswith("compare"):
        return f"{message}; the file looks like one for `puma compare`"
    return message


def _refuse_empty(config_class: type, options: Any, within: str = "") -> None:
    """Settings without a value in a file, of which the parser takes every one to be null.

    Raises:
        ValueError: naming the setting, where null is no value of it.
    """
    for name, kind in get_type_hints(config_class).items():
        value = options.get(name, None)
        if is_dataclass(kind):
            if not isinstance(value, Namespace):
                raise ValueError(
                    f"{within}{name} is {'empty' if value is None else repr(value)}; put its settings below it, "
                    "indented, or leave it out"
                )
            _refuse_empty(kind, value, f"{within}{name}.")  # type: ignore[arg-type]
        elif value is None and type(None) not in get_args(kind):
            raise ValueError(f"{within}{name} is empty (null); give a value, or leave it out")


def parse(parser: ArgumentParser, config_class: type[T], arguments: Sequence[str]) -> tuple[T, Namespace]:
    """The checked configuration, and the parsed options.

    Raises:
        ValueError: for an unknown option, a value of the wrong type, or one that the configuration refuses.
    """
    try:
        options = parser.parse_args(_find_configs(arguments))
        _refuse_empty(config_class, options)
        built = parser.instantiate(options)
    except UnicodeDecodeError as error:
        raise ValueError(f"the configuration file is no UTF-8 ({error}); save it as such") from error
    except ArgumentError as error:
        raise ValueError(f"{in_words(str(error), parser)} (see `{parser.prog} --help`)") from error
    values: dict[str, Any] = {field.name: built[field.name] for field in fields(config_class)}  # type: ignore[arg-type]
    return config_class(**values), options
