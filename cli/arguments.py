"""The grammar of both commands: arguments, TOML settings, one-line errors and exit codes.

A command declares its arguments once, each with a kind (a `Range`, a `Choice` or one of the kinds
below); the flags, the keys of the TOML file, the help text and every check follow from that.
Nothing here imports torch: `--help` and every usage error must answer at once.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol

from landscape.table import Choice, Range, WordOr

DONE = 0
INTERNAL = 1  # a fault of ours
USAGE = 2
BAD_INPUT = 3  # an input file or user code
NUMERICAL = 4
PARTIAL = 5  # saved, but not complete: time budget, disk full
SIGNALLED = 128  # plus the number of the signal


class CommandError(Exception):
    """Ends the command with an exit code and one line: what is wrong, where, what to do."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = " ".join(message.split())


class OutOfMemory(CommandError):
    """Memory ran out while the probe data went through the model."""

    def __init__(self, num_rows: int | None = None) -> None:
        even = "" if num_rows is None else f" even with {num_rows} samples at a time"
        super().__init__(
            NUMERICAL, f"out of memory{even}: give a smaller --micro-batch, or fewer --max-samples"
        )


class Kind(Protocol):
    """What an argument's value may be. `Range` and `Choice` are kinds too."""

    @property
    def default(self) -> Any: ...
    def describe(self) -> str: ...
    def check(self, name: str, value: Any) -> None: ...
    def parse(self, name: str, text: str) -> Any: ...


@dataclass(frozen=True)
class Text:
    """Any text, or None where none is given."""

    default: str | None = None

    def describe(self) -> str:
        return "a text"

    def check(self, name: str, value: Any) -> None:
        if value is None and self.default is None:
            return
        if not isinstance(value, str) or not value:
            raise ValueError(f"{name} must be a text, got {value!r}")

    def parse(self, name: str, text: str) -> str:
        self.check(name, text)
        return text


@dataclass(frozen=True)
class Words:
    """Several words: separated by commas on the command line, a list in a file."""

    default: tuple[str, ...] = ()

    def describe(self) -> str:
        return "words separated by commas"

    def check(self, name: str, value: Any) -> None:
        if not isinstance(value, (list, tuple)) or not all(
            isinstance(word, str) and word for word in value
        ):
            raise ValueError(f"{name} must be a list of texts, got {value!r}")

    def parse(self, name: str, text: str) -> tuple[str, ...]:
        words = tuple(word.strip() for word in text.split(","))
        if not all(words):
            raise ValueError(f"{name} must be {self.describe()}, got {text!r}")
        return words


@dataclass(frozen=True)
class Switch:
    """On or off: a flag without a value, true or false in a file."""

    default: bool = False

    def describe(self) -> str:
        return "true or false"

    def check(self, name: str, value: Any) -> None:
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be true or false, got {value!r}")

    def parse(self, name: str, text: str) -> bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{name} must be true or false, got {text!r}")
        return text.lower() == "true"


@dataclass(frozen=True)
class Argument:
    """One flag of a command and one key of its TOML file.

    Attributes:
        name: as the flag says it, without dashes in front: "batch-size".
        kind: what the value may be, with the default.
        help: one line.
        group: the heading it stands under in --help.
        in_config: whether a TOML file may hold it.
        exclusive: arguments that share this word exclude each other: two of them in one place are
            an error, and one on the command line replaces another in the file.
        repeated: the flag may be given several times and the value is the tuple of all.
        positional: no flag; the value is the tuple of all words without one.
        metavar: how the value is called in --help.
    """

    name: str
    kind: Kind
    help: str
    group: str = "options"
    in_config: bool = True
    exclusive: str | None = None
    repeated: bool = False
    positional: bool = False
    metavar: str | None = None

    @property
    def key(self) -> str:
        return self.name.replace("-", "_")

    @property
    def flag(self) -> str:
        return self.name if self.positional else f"--{self.name}"

    @property
    def default(self) -> Any:
        return () if self.repeated or self.positional else self.kind.default

    def read(self, value: Any, owner: str) -> Any:
        """The value of a TOML file, checked, in the type that the command line would give it."""
        if self.repeated or self.positional:
            if not isinstance(value, list):
                raise ValueError(f"{owner} must be a list, got {value!r}")
            return tuple(canonical(self.kind, owner, item) for item in value)
        return canonical(self.kind, owner, value)

    def parse(self, given: Any) -> Any:
        """The value of the command line's word or words."""
        if isinstance(given, bool):
            return given
        if self.repeated or self.positional:
            return tuple(
                canonical(self.kind, self.flag, self.kind.parse(self.flag, word)) for word in given
            )
        return canonical(self.kind, self.flag, self.kind.parse(self.flag, given))


def canonical(kind: Kind, name: str, value: Any) -> Any:
    """The value, checked, with 1 and 1.0 made one: whole numbers where the kind says so."""
    if isinstance(kind, Words) and isinstance(value, str):
        return kind.parse(name, value)
    kind.check(name, value)
    number = kind.number if isinstance(kind, WordOr) else kind
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if isinstance(number, Range):
            return int(value) if number.integer else float(value)
        return value
    return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True)
class Settings:
    """What was asked for: every argument's value by key, and where the values came from.

    Attributes:
        values: one value for every argument.
        flags: the keys given on the command line.
        given: the keys given anywhere.
        config: the TOML file that was read, or None.
    """

    values: Mapping[str, Any]
    flags: frozenset[str] = frozenset()
    given: frozenset[str] = frozenset()
    config: Path | None = field(default=None)

    def __getitem__(self, key: str) -> Any:
        return self.values[key]


class _Parser(argparse.ArgumentParser):
    """Raises instead of printing a usage text of its own."""

    def error(self, message: str) -> NoReturn:
        raise CommandError(USAGE, f"{message} (--help lists the options)")


def read_arguments(
    arguments: Sequence[Argument],
    argv: Sequence[str],
    *,
    prog: str,
    description: str,
    epilog: str = "",
) -> Settings:
    """Defaults < file < flags, each value checked where it enters.

    The file is the one named by `--config`, if the command has that argument. `--help` prints and
    raises SystemExit(0).

    Raises:
        CommandError: exit code 2: an unknown flag or key (with the nearest name), a wrong type, a
            number out of range (with the range), two arguments that exclude each other.
    """
    words = _parse_words(arguments, argv, prog=prog, description=description, epilog=epilog)
    by_key = {argument.key: argument for argument in arguments}
    with usage_errors():
        flags = {key: by_key[key].parse(word) for key, word in words.items()}
    config = Path(flags["config"]) if flags.get("config") else None
    from_file = read_config(config, arguments) if config else {}
    for where, layer in (("on the command line", flags), (f"in {config}", from_file)):
        _refuse_exclusive(layer, by_key, where)
    replaced = {by_key[key].exclusive for key in flags} - {None}
    from_file = {key: v for key, v in from_file.items() if by_key[key].exclusive not in replaced}
    values = {argument.key: argument.default for argument in arguments} | from_file | flags
    return Settings(values, frozenset(flags), frozenset(flags) | frozenset(from_file), config)


def _parse_words(
    arguments: Sequence[Argument],
    argv: Sequence[str],
    *,
    prog: str,
    description: str,
    epilog: str,
) -> dict[str, Any]:
    parser = _Parser(
        prog=prog,
        description=description,
        epilog=epilog,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    groups: dict[str, Any] = {}
    for argument in arguments:
        group = groups.get(argument.group)
        if group is None:
            group = groups[argument.group] = parser.add_argument_group(argument.group)
        _declare(group, argument)
    known, unknown = parser.parse_known_args(list(argv))
    if unknown:
        flags = [argument.flag for argument in arguments if not argument.positional]
        flag = unknown[0].partition("=")[0]
        raise CommandError(USAGE, f"unknown option {flag!r}{nearest(flag, flags)}")
    return {key: word for key, word in vars(known).items() if word != []}


def _declare(group: Any, argument: Argument) -> None:
    described = argument.help.replace("%", "%%")
    if argument.positional:
        metavar = argument.metavar or argument.name.upper()
        group.add_argument(argument.key, nargs="*", metavar=metavar, help=described)
    elif isinstance(argument.kind, Switch):
        group.add_argument(argument.flag, action="store_true", help=described)
    else:
        default = argument.kind.default
        if default not in (None, ()):
            shown = ",".join(default) if isinstance(default, tuple) else default
            described += f" (default {shown})".replace("%", "%%")
        shape = argument.metavar or argument.key.rpartition("_")[2].upper()
        if argument.metavar is None and isinstance(argument.kind, Choice):
            shape = "|".join(str(word) for word in argument.kind.choices if word is not None)
        group.add_argument(
            argument.flag,
            action="append" if argument.repeated else "store",
            metavar=shape,
            help=described,
        )


def _refuse_exclusive(layer: Mapping[str, Any], by_key: Mapping[str, Argument], where: str) -> None:
    chosen: dict[str, str] = {}
    for key, value in layer.items():
        word = by_key[key].exclusive
        if word is None or value is None:
            continue
        if word in chosen:
            raise CommandError(USAGE, f"{chosen[word]} and {key} exclude each other {where}")
        chosen[word] = key


def read_config(path: Path, arguments: Iterable[Argument]) -> dict[str, Any]:
    """The checked values of a TOML file by key; dashes and underscores in keys are the same.

    Raises:
        CommandError: exit code 2, naming the file, the key and what is allowed.
    """
    import tomllib

    by_key = {argument.key: argument for argument in arguments if argument.in_config}
    try:
        # surrogateescape: a folder name that is not UTF-8 survives the round trip
        document = tomllib.loads(path.read_bytes().decode("utf-8", "surrogateescape"))
    except OSError as error:
        raise CommandError(USAGE, f"--config {path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise CommandError(USAGE, f"{path}: not valid TOML: {error}") from error
    values: dict[str, Any] = {}
    for name, value in document.items():
        key = name.replace("-", "_")
        if key not in by_key:
            hint = nearest(key, by_key)
            raise CommandError(USAGE, f"{path}: unknown key {name!r}{hint}")
        if key in values:
            raise CommandError(USAGE, f"{path}: {key} is given twice")
        with usage_errors(f"{path}: "):
            values[key] = by_key[key].read(value, name)
    return values


def to_toml(values: Mapping[str, Any]) -> str:
    """The TOML text that `read_config` turns back into the same values; None is left out."""
    import tomli_w

    plain = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in values.items()
        if value is not None
    }
    return tomli_w.dumps(plain)


def nearest(word: str, names: Iterable[str]) -> str:
    """'; did you mean X?' where some name is near, else where to look."""
    near = difflib.get_close_matches(word, list(names), n=1)
    return f"; did you mean {near[0]!r}?" if near else " (--help lists what there is)"


@contextlib.contextmanager
def usage_errors(where: str = "") -> Any:
    """Turns a ValueError inside into a usage error, exit code 2."""
    try:
        yield
    except ValueError as error:
        raise CommandError(USAGE, f"{where}{error}") from error


def run_command(
    main: Callable[[Sequence[str]], int], argv: Sequence[str] | None, *, prog: str
) -> int:
    """Runs `main(argv)` and returns the exit code; every error becomes one line on stderr.

    `--debug` anywhere in argv adds the traceback.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):  # a path that is not UTF-8 must not end the command
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = main(words)
        sys.stdout.flush()
        return code
    except CommandError as error:
        return _report(prog, error.code, error.message, words)
    except SystemExit as error:  # --help, --version
        return error.code if isinstance(error.code, int) else DONE
    except KeyboardInterrupt:
        return _report(prog, SIGNALLED + 2, "interrupted", words)
    except BrokenPipeError:  # `| head`: what reads stdout has gone; nothing is left to tell it
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return SIGNALLED + 13
    except OSError as error:
        named = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):  # full, or over a limit
            return _report(prog, PARTIAL, f"{named}; free some space, then --resume", words)
        return _report(prog, USAGE, named, words)
    except Exception as error:
        message = f"internal error: {type(error).__name__}: {error}"
        hint = "" if "--debug" in words else " (--debug shows where)"
        return _report(prog, INTERNAL, " ".join(message.split()) + hint, words)


def _report(prog: str, code: int, message: str, words: Sequence[str]) -> int:
    if "--debug" in words:
        traceback.print_exc()
    print(f"{prog}: error: {_visible(message)}", file=sys.stderr)
    return code


def _visible(text: str) -> str:
    """The text as one line; names from outside that would steer a terminal show as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
