"""A factory of the user's: found, called with stdout kept clean, its failures told by its line."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

_OURS = [
    Path(__file__).resolve().parents[2] / name for name in ("landscape", "sam_variants", "cli")
]


def run_factory(word: str, /, *, allow_code: bool = False, **arguments: Any) -> Any:
    """What the user's `package.module:factory` or `FILE.py:factory` returns.

    A package is imported as Python finds it; a file is run only with `allow_code`. sys.path is
    left as it is, so the current folder is never searched because of us. What the code prints
    goes to stderr: stdout carries answers.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file without `allow_code`; no such module or function; the code raised (names
            the user's own file and line).
    """
    factory = find_function(word, allow_code)
    try:
        inspect.signature(factory).bind(**arguments)
    except TypeError as error:
        given = ", ".join(f"{name}={value!r}" for name, value in arguments.items()) or "nothing"
        raise ValueError(
            f"{word} at {defined_at(factory)} cannot be called with {given}: {error}"
        ) from None
    except ValueError:  # a builtin without a signature; the call itself will tell
        pass
    with users_code(word, folder_of(factory)):
        return factory(**arguments)


def defined_at(factory: Callable[..., Any]) -> str:
    """FILE:LINE of the factory's definition, for messages about what it returned."""
    try:
        code = inspect.unwrap(factory)
        line = inspect.getsourcelines(code)[1]
        return f"{inspect.getsourcefile(code)}:{line}"
    except (TypeError, OSError, ValueError):
        return getattr(factory, "__module__", None) or "an unknown place"


def where(word: str, *, allow_code: bool = False) -> str:
    """FILE:LINE of the definition behind a word, for messages about what it returned."""
    return defined_at(find_function(word, allow_code))


def find_function(word: str, allow_code: bool) -> Callable[..., Any]:
    """What `package.module:name` or `FILE.py:name` names, not called yet.

    Raises:
        FileNotFoundError: no such file.
        ValueError: as `run_factory`; the name stands for nothing that can be called.
    """
    target, _, name = word.rpartition(":")
    if target.endswith(".py"):
        module = _run_file(word, Path(target).expanduser(), allow_code)
    else:
        module = _import_module(word, target)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            public = [key for key, value in vars(module).items() if callable(value)]
            known = ", ".join(sorted(key for key in public if not key.startswith("_"))) or "none"
            raise ValueError(f"{target} has no function {name!r} (it has: {known})")
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(f"{word} is a {type(found).__name__}, not a function")
    return found  # type: ignore[no-any-return]


def _run_file(word: str, path: Path, allow_code: bool) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"{word}: file {path} does not exist")
    if not allow_code:
        raise ValueError(f"{word} would run the file {path}; give --allow-code to allow it")
    path = path.resolve()
    # One name a file and content: two files of one name do not meet, a second word finds the
    # module, and an edited file is run anew.
    digest = hashlib.sha256(str(path).encode() + b"\0" + path.read_bytes())
    name = f"_user_code_{digest.hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{word}: {path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with users_code(word, path.parent):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import_module(word: str, target: str) -> ModuleType:
    try:
        with users_code(word, None, passing=ModuleNotFoundError):
            return importlib.import_module(target)
    except ModuleNotFoundError as error:
        if error.name is None or not (target == error.name or target.startswith(f"{error.name}.")):
            place = _place(error.__traceback__, None)
            raise ValueError(f"{word} failed at {place}: {error}") from None
        raise ValueError(
            f"{word}: Python finds no module {error.name!r}; install it, put its folder on "
            "PYTHONPATH, or give FILE.py:factory with --allow-code"
        ) from None


@contextlib.contextmanager
def users_code(
    word: str, folder: Path | None, passing: type[BaseException] | tuple[()] = ()
) -> Any:
    """Prints of the block go to stderr; what it raises becomes one line with the user's place."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except passing:
        raise
    except SyntaxError as error:
        raise ValueError(
            f"{word} failed at {error.filename}:{error.lineno}: SyntaxError: {error.msg}"
        ) from error
    except (Exception, SystemExit) as error:
        place = _place(error.__traceback__, folder)
        message = " ".join(str(error).split())
        raise ValueError(f"{word} failed at {place}: {type(error).__name__}: {message}") from error


def folder_of(factory: Callable[..., Any]) -> Path | None:
    """The folder of the file that defines it; None for what comes from no file."""
    module = sys.modules.get(getattr(factory, "__module__", None) or "")
    file = getattr(module, "__file__", None)
    return Path(file).resolve().parent if file else None


def users_place(error: BaseException) -> str | None:
    """FILE:LINE of the deepest frame, of the error or its cause, that is the user's own code.

    That is neither this project's, nor Python's, nor that of an installed package; None where no
    such frame took part.
    """
    installed = ("stdlib", "platstdlib", "purelib", "platlib")
    foreign = [*_OURS, *(Path(sysconfig.get_path(name)).resolve() for name in installed)]
    cause: BaseException | None = error
    while cause is not None:
        for frame, line in reversed(list(traceback.walk_tb(cause.__traceback__))):
            path = Path(frame.f_code.co_filename)
            if path.is_file() and not set(foreign) & set(path.resolve().parents):
                return f"{path}:{line}"
        cause = cause.__cause__
    return None


def _place(trace: TracebackType | None, folder: Path | None) -> str:
    """FILE:LINE of the deepest frame in the user's folder; without one, of the deepest of all."""
    frames = traceback.extract_tb(trace)
    frames = traceback.StackSummary.from_list(
        [f for f in frames if f.filename != __file__ and not f.filename.startswith("<frozen")]
    )
    own = [
        frame
        for frame in frames
        if folder is not None
        and folder in Path(frame.filename).resolve().parents
        and "site-packages" not in Path(frame.filename).relative_to(folder).parts
    ]
    chosen = (own or list(frames))[-1:]
    return f"{chosen[0].filename}:{chosen[0].lineno}" if chosen else "its call"
