"""Prompts with columns in them: ``Classify {{ text }}``. Jinja2, sandboxed, checked beforehand."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any

import msgspec
from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, meta
from jinja2.exceptions import SecurityError, UndefinedError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from batch_llm.core.plain import as_plain
from batch_llm.core.text import safe, width
from batch_llm.exceptions import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

_MAX_TEXT = 10_000_000
_NUMBERED = re.compile(r"(\{\{-?\s*)(\d+)(?=\s*(?:\||-?\}\}))")
_PREFIX = "column_"
_WIDE_FILTERS = ("center", "format", "indent", "wordwrap")
_WIDE_METHODS = frozenset(
    {"ljust", "rjust", "center", "zfill", "format", "format_map", "expandtabs", "replace"}
)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Keeps a template from running for ever or filling the memory.

    It can loop over a row's data only, and cannot ask for widths. The prompt's author is not
    hostile, but a slip must not stop a run of a million rows.
    """

    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(undefined=StrictUndefined, finalize=_finish, keep_trailing_newline=True)
        self.globals.clear()  # no `range`, no `lipsum`
        for name in _WIDE_FILTERS:
            del self.filters[name]

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Refuse the methods of texts that take a width, and what the sandbox refuses."""
        return attr not in _WIDE_METHODS and super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Refuse powers, and `*` and `%` on anything but numbers."""
        if operator == "**" or (not all(isinstance(side, int | float) for side in (left, right))):
            raise SecurityError(f"`{operator}` is not allowed in a prompt")
        return super().call_binop(context, operator, left, right)


def _finish(value: Any) -> Any:
    """Show a value in a prompt: text as it is, nothing for null, everything else as JSON."""
    if isinstance(value, str | StrictUndefined):
        return value
    return "" if value is None else msgspec.json.encode(value, enc_hook=as_plain).decode()


def _place_of(name: str, line: str) -> int | None:
    """Find a name inside of a line's braces; the same word may stand in the text outside."""
    for block in re.finditer(r"\{[{%](.*?)[}%]\}", line):
        found = re.search(rf"(?<!\w){re.escape(name)}(?!\w)", block[1])
        if found:
            return block.start(1) + found.start()
    return None


class Template:
    """A prompt over a row's columns. ``{{ 1 }}`` is the column called ``1``.

    Raises:
        ConfigError: The text is no template; the message names the line.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        if not text.strip():
            raise ConfigError("--prompt", text, "a template that is not empty")
        environment = _Sandbox()
        source = _NUMBERED.sub(rf"\1{_PREFIX}\2", text)
        try:
            names = meta.find_undeclared_variables(environment.parse(source))
            self._template = environment.from_string(source)
        except TemplateSyntaxError as error:
            reason = (error.message or "it cannot be read").removesuffix(".")
            raise ConfigError(
                "--prompt", text, f"a template (line {error.lineno}: {reason})"
            ) from error
        self._numbered = {n for n in names if re.fullmatch(rf"{_PREFIX}\d+", n)}
        self.columns = {
            name.removeprefix(_PREFIX) if name in self._numbered else name for name in names
        }

    @property
    def is_numbered(self) -> bool:
        """Whether it names columns by their position: then the file has no header."""
        return bool(self._numbered)

    def check(self, columns: Sequence[str], file: str) -> str | None:
        """Return what to tell the user when a column is missing, or None when all are there."""
        for name in sorted(self.columns - set(columns)):
            near = difflib.get_close_matches(name, columns, 1)
            lines = [f'the prompt uses "{safe(name)}", but {file} has no such column', ""]
            for line in self.text.splitlines():
                place = _place_of(name, line)
                if place is not None:
                    lines += [
                        f"    {safe(line)}",
                        "    " + " " * width(safe(line[:place])) + "^" * width(name),
                        "",
                    ]
                    break
            lines.append(f"  columns: {', '.join(safe(column, 40) for column in columns)}")
            if near:
                lines.append(f"  did you mean {{{{ {near[0]} }}}}?")
            return "\n".join(lines)
        return None

    def render(self, data: dict[str, Any]) -> str:
        """Return the prompt of a row.

        Raises:
            ValueError: A column is missing in this row, or the template may not do what it does.
        """
        values = data
        # A filter would make the word "None" of it. By identity: an array answers `==` with arrays.
        if any(value is None for value in data.values()):
            values = {name: "" if value is None else value for name, value in data.items()}
        if self._numbered:
            values = values | {name: values[name.removeprefix(_PREFIX)] for name in self._numbered}
        try:
            text = self._template.render(values)
        except UndefinedError as error:
            raise ValueError(self._missing(values) or safe(error)) from error
        except (TemplateError, TypeError, ArithmeticError, OverflowError) as error:
            raise ValueError(safe(error)) from error
        if len(text) > _MAX_TEXT:
            raise ValueError(f"the prompt has {len(text)} characters")
        return text

    def _missing(self, values: dict[str, Any]) -> str | None:
        """Say which of the prompt's columns a row is without; None where it has them all."""
        for name in sorted(self.columns - values.keys()):
            return f'the prompt uses "{safe(name)}", which this row is without'
        return None
