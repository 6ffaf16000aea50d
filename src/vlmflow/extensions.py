"""What users add: classes with a name and parameters, found from their definition on.

A ranking or a signal is a subclass of a base of its own; the base is an :class:`Extension`, and a
:class:`Registry` finds its subclasses by name. Nothing has to be registered: a class in a notebook
cell can be used at once, other packages offer theirs as entry points, and the files of a folder of
ours are listed by parsing them, so that a list of names imports none of them.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import inspect
import linecache
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, fields
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import CodeType
from typing import Any, ClassVar, Generic, TypeVar

from vlmflow.errors import InputError
from vlmflow.parameters import as_plain, as_tuples, literal, split_outside_brackets

_CALL = re.compile(r"\s*([^(),]+?)\s*(?:\((.*)\))?\s*", re.DOTALL)
_NAME = re.compile(r"[\w.-]+")
_KEPT = "_source_text"
_BARE = ("builtins", "abc", "typing")
"""Modules whose classes say nothing about what a user's class does."""


@dataclass(frozen=True)
class Extension:
    """A class that users derive from; the fields of a subclass are its parameters."""

    name: ClassVar[str] = ""
    """What it is called; empty: the class's name in lower case (``MyRanking``: ``my_ranking``)."""

    summary: ClassVar[str] = ""
    """One line for lists; empty: the first line of the docstring."""

    source: ClassVar[str] = ""
    """The paper it comes from."""

    version: ClassVar[str] = ""
    """To be changed with the code where its source cannot be read (a class made by a program): a
    study never reuses results of another version."""

    @classmethod
    def known_as(cls) -> str:
        """Return its name."""
        if cls.__dict__.get("name"):
            return cls.name
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__.lstrip("_")).lower()

    @classmethod
    def in_one_line(cls) -> str:
        """Describe it in one line."""
        if cls.__dict__.get("summary"):
            return cls.summary
        lines = (cls.__doc__ or "").strip().splitlines()
        return lines[0] if lines else ""

    @property
    def title(self) -> str:
        """Its name, with the parameters that are not at their defaults: ``random(seed=3)``."""
        changed = [
            f"{field.name}={value!r}"
            for field in _parameters(self)
            if (value := getattr(self, field.name)) != _default(field)
        ]
        return self.known_as() + (f"({', '.join(changed)})" if changed else "")

    def to_json(self) -> dict[str, Any]:
        """Return name and parameters as a dictionary that JSON can hold.

        Raises InputError for other parameters than texts, finite numbers, booleans and tuples of
        them.
        """
        plain: dict[str, Any] = {"name": self.known_as()}
        for field in _parameters(self):
            plain[field.name] = as_plain(getattr(self, field.name), f"{plain['name']}.{field.name}")
        return plain

    def fingerprint(self) -> str:
        """Hash name, parameters and code, so that an edited class never passes for the old one.

        The code is the source of the class and of the classes it derives from; the functions that
        they call are not looked at. A class that states a :attr:`version` is identified by it; a
        subclass of it is not. Raises InputError if the source cannot be read and no version is
        stated.
        """
        text = "\n".join([repr(sorted(self.to_json().items())), *self._sources()])
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def __reduce_ex__(self, protocol: Any) -> Any:
        # A class of a notebook goes to other processes by value, where its cell was not run.
        for cls in type(self).__mro__:
            _source(cls)
        return super().__reduce_ex__(protocol)

    def _sources(self) -> Iterator[str]:
        for cls in type(self).__mro__:
            ours = cls.__module__.startswith("vlmflow.") and Extension in cls.__bases__
            if ours or cls is Extension or cls.__module__ in _BARE:
                continue  # the base that users derive from, and what it derives from
            stated = vars(cls).get("version")
            source = f"version {stated}" if stated else _source(cls)
            if source is None:
                raise InputError(
                    f"the source of {self.known_as()!r} cannot be read, so a study could not tell "
                    "an edited one from the old one; write version = '1' into the class and "
                    "change it with the code"
                )
            yield source

    def check_parameters(self) -> None:
        """Raise InputError for a name that files cannot hold, or parameters that can change."""
        name = self.known_as()
        if not _NAME.fullmatch(name):
            raise InputError(
                f"name={name!r} of {type(self).__name__} is not a name; use letters, digits, '_', "
                "'-' and '.'"
            )
        for field in _parameters(self):
            if field.name == "name":
                raise InputError(
                    f"{type(self).__name__} has a parameter called 'name', which is what the "
                    "class is called by; leave out its annotation, or rename the parameter"
                )
            value = getattr(self, field.name)
            try:
                hash(value)
            except TypeError as error:
                raise InputError(
                    f"{name}.{field.name} is a {type(value).__name__}, which can change after it "
                    "was passed; parameters are texts, numbers, booleans and tuples of them"
                ) from error


E = TypeVar("E", bound=Extension)


class Registry(Generic[E]):
    """Finds the subclasses of one base by their names.

    Parameters
    ----------
    base : type
        What they derive from.
    noun : str
        What errors call them: ``"ranking"``.
    package : str
        Whose files hold one bundled class each, called as the file is.
    group : str
        Entry-point group in which other packages offer theirs.
    """

    def __init__(self, base: type[E], *, noun: str, package: str, group: str) -> None:
        self.base, self.noun, self.package, self.group = base, noun, package, group

    @property
    def _a_noun(self) -> str:
        return f"{'an' if self.noun[0] in 'aeiou' else 'a'} {self.noun}"

    def find(self, name: str) -> type[E]:
        """Find a class by its name; InputError if there is none, or two have the name.

        ``module:Class`` names one by where it is defined; the module is imported, from the working
        directory where it is a file there.
        """
        if ":" in name:
            return self._of_module(name)
        if name in _bundled(self.package):
            importlib.import_module(f"{self.package}.{name}")
        # A cell that is run again defines the class again: the last one counts.
        classes = {
            f"{cls.__module__}.{cls.__qualname__}": cls
            for cls in _subclasses(self.base)
            if cls.known_as() == name
        }
        for entry in () if classes else metadata.entry_points(group=self.group, name=name):
            classes[entry.value] = self._loaded(entry)
        if not classes:
            raise InputError(
                f"{self.noun} {name!r} is unknown; there are {', '.join(self.names())}, and yours "
                "as module:Class"
            )
        if len(classes) > 1:
            raise InputError(
                f"{self.noun} {name!r} means {' and '.join(sorted(classes))}: give yours another "
                "name in its class (name = '...'), or pass an instance of it"
            )
        return next(iter(classes.values()))

    def read(self, given: object) -> E:
        """Return the object that a user names or passes.

        ``given`` is a name, with parameters in brackets where they are not the defaults
        (``"random(seed=3)"``); an instance; or what :meth:`Extension.to_json` gave. Raises
        InputError for anything else, or what cannot be found.
        """
        if isinstance(given, self.base):
            return given
        if isinstance(given, str):
            return self._parsed(given)
        if isinstance(given, Mapping) and isinstance(given.get("name"), str):
            parameters = {key: value for key, value in given.items() if key != "name"}
            return self._made(given["name"], parameters)
        if isinstance(given, type) and issubclass(given, self.base):
            raise InputError(
                f"{given.__name__} is a class; pass an instance of it: {given.__name__}()"
            )
        raise InputError(
            f"{given!r} is not {self._a_noun}; give a name ({', '.join(self.names())}) or an "
            f"instance of a subclass of vlmflow.{self.base.__name__}"
        )

    def names(self) -> dict[str, str]:
        """List every name with its one line, without importing what has not been imported."""
        imported = {cls.known_as(): cls.in_one_line() for cls in _subclasses(self.base)}
        bundled = self.bundled()
        names = bundled | imported | bundled  # ours first, and theirs not under names of ours
        for entry in metadata.entry_points(group=self.group):
            names.setdefault(entry.name, f"from {entry.value}")
        return names

    def bundled(self) -> dict[str, str]:
        """List those of our own folder alone, with their lines."""
        return dict(_bundled(self.package))

    def _of_module(self, address: str) -> type[E]:
        """Import the class that ``module:Class`` names."""
        module_name, _, class_name = address.partition(":")
        if not all(part.isidentifier() for part in (*module_name.split("."), class_name)):
            raise InputError(
                f"{address!r} does not name {self._a_noun}; write for example my_module:MyClass"
            )
        here = str(Path.cwd())
        sys.path.insert(0, here)
        try:
            module = importlib.import_module(module_name)
        except Exception as error:  # a user's code may raise anything
            raise InputError(
                f"module {module_name!r} of {self.noun} {address!r} cannot be imported "
                f"({type(error).__name__}: {error}); it has to stand in the working directory or "
                "be installed"
            ) from error
        finally:
            if here in sys.path:
                sys.path.remove(here)
        loaded = getattr(module, class_name, None)
        if not (isinstance(loaded, type) and issubclass(loaded, self.base)):
            raise InputError(
                f"module {module_name!r} has no subclass of vlmflow.{self.base.__name__} called "
                f"{class_name!r}"
            )
        return loaded

    def _loaded(self, entry: metadata.EntryPoint) -> type[E]:
        """Import what another package offers."""
        try:
            loaded = entry.load()
        except Exception as error:  # code of another package may raise anything
            raise InputError(
                f"{self.noun} {entry.name!r} cannot be loaded from {entry.value} "
                f"({type(error).__name__}: {error}): repair or uninstall its package"
            ) from error
        if not (isinstance(loaded, type) and issubclass(loaded, self.base)):
            raise InputError(
                f"entry point {entry.value!r} of {self.group} is not a subclass of "
                f"vlmflow.{self.base.__name__}"
            )
        if loaded.known_as() != entry.name:
            raise InputError(
                f"entry point {entry.name!r} of {self.group} is {entry.value}, whose name is "
                f"{loaded.known_as()!r}; the two names must be the same"
            )
        return loaded

    def _parsed(self, text: str) -> E:
        matched = _CALL.fullmatch(text)
        if matched is None:
            raise InputError(f"{text!r} is not {self._a_noun}; write for example name(parameter=3)")
        name, inside = matched.groups()
        parameters: dict[str, Any] = {}
        for part in split_outside_brackets(inside or ""):
            key, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals or not key or not value or key in parameters:
                raise InputError(f"{part.strip()!r} in {text!r} is not a parameter; write name=3")
            parameters[key] = literal(value)
        return self._made(name, parameters)

    def _made(self, name: str, parameters: Mapping[str, Any]) -> E:
        cls = self.find(name)
        names = [field.name for field in _parameters(cls)]
        for key in parameters:
            if key not in names:
                has = f"its parameters are {', '.join(names)}" if names else "it has none"
                raise InputError(f"{self.noun} {name!r} has no parameter {key!r}; {has}")
        try:
            return cls(**{key: as_tuples(value) for key, value in parameters.items()})
        except TypeError as error:  # a parameter without a default is missing
            raise InputError(f"{self.noun} {name!r}: {error}") from error


def _parameters(owner: Extension | type[Extension]) -> list[Field[Any]]:
    """List the fields that a user gives."""
    return [field for field in fields(owner) if field.init]


def _default(field: Field[Any]) -> Any:
    # Not compared with MISSING: a class that came from another process brings a copy of that.
    return field.default_factory() if callable(field.default_factory) else field.default


def _source(cls: type) -> str | None:
    """Read the source of a class, once; None if it cannot be read."""
    text: str | None = vars(cls).get(_KEPT)
    if text is None and cls.__module__ not in _BARE:
        text = _read_source(cls)
        if text is not None:
            setattr(cls, _KEPT, text)
    return text


def _read_source(cls: type) -> str | None:
    # By a method's line: a class of a notebook has no file, and a file may hold several of a name.
    for value in vars(cls).values():
        function = getattr(value, "fget", None) or getattr(value, "__func__", value)
        if inspect.isfunction(function) and function.__module__ == cls.__module__:
            text = _class_around(function.__code__, cls.__name__)
            if text is not None:
                return text
    try:
        return inspect.getsource(cls)
    except (OSError, TypeError):
        return None


def _class_around(code: CodeType, name: str) -> str | None:
    """Read the class of this name that holds a method."""
    lines = linecache.getlines(code.co_filename)
    try:
        nodes = list(ast.walk(ast.parse("".join(lines))))
    except SyntaxError:  # a cell with commands of the notebook's own
        return None
    for node in reversed(nodes):  # inner ones first
        if isinstance(node, ast.ClassDef) and node.name == name:
            first = min([node.lineno, *(line.lineno for line in node.decorator_list)])
            last = node.end_lineno or first
            if first <= code.co_firstlineno <= last:
                return "".join(lines[first - 1 : last])
    return None


def _subclasses(parent: type[E]) -> list[type[E]]:
    """Return all classes derived from one, in the order of their definition."""
    classes: list[type[E]] = []
    for cls in parent.__subclasses__():
        classes += [cls, *_subclasses(cls)]
    return classes


@functools.cache
def _bundled(package: str) -> dict[str, str]:
    """Name and line of the classes in a folder of ours: a file is called as what it holds."""
    spec = find_spec(package)
    names = {}
    for folder in () if spec is None else spec.submodule_search_locations or ():
        for path in sorted(Path(folder).glob("*.py")):
            for node in ast.parse(path.read_text("utf-8")).body:
                constants = _constants(node) if isinstance(node, ast.ClassDef) else {}
                if constants.get("name") == path.stem:
                    names[path.stem] = str(constants.get("summary", ""))
    return names


def _constants(node: ast.ClassDef) -> dict[str, Any]:
    """Read the constants that a class body assigns."""
    return {
        target.id: statement.value.value
        for statement in node.body
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }
