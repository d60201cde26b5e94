"""How rows become requests: prompt, settings and shape of a brief; what retries change of them."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from batch_llm.base import LLMWorkItem
from batch_llm.core.request import Image, Message, Request, Settings, Text
from batch_llm.core.text import safe
from batch_llm.core.tokenizers import count_request
from batch_llm.exceptions import InputError
from batch_llm.inputs import Row, Template
from batch_llm.providers import openai

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from batch_llm.inputs import Identifier, Problem
    from batch_llm.inputs.blocks import Body
    from batch_llm.runs.brief import Brief

    Item = LLMWorkItem[Any, Any, Row]

_CHAT_URL = "/v1/chat/completions"
_ADDRESSES = ("https://", "http://", "data:")
_TABLES = {"rows", "csv", "tsv", "parquet"}


class RowSource(Protocol):
    """Where rows come from: a file, or values. Iterated as often as needed."""

    @property
    def name(self) -> str:
        """How it is called in messages."""

    @property
    def format(self) -> str:
        """The shape of its records."""

    @property
    def unit(self) -> str:
        """What it is counted in: a line or a row."""

    @property
    def columns(self) -> Sequence[str]:
        """The columns of the first good record."""

    @property
    def id_column(self) -> str | None:
        """The column that holds the ids; None where rows are numbered."""

    def __iter__(self) -> Iterator[Row | Problem]: ...

    def has_changed(self) -> bool:
        """Tell whether the rows are other ones than at first."""
        ...

    def identifier(self) -> Identifier:
        """Return who gives the rows of one reading their ids."""
        ...

    def body(self) -> Body | None:
        """Return what the rows are read with block by block; None where they cannot be."""
        ...


@dataclass(frozen=True, slots=True)
class Variant:
    """Settings that rows were retried with, instead of the run's own.

    Attributes:
        number: From 1, in the order of the retries.
        settings: Those that are not None replace the run's.
        model: Replaces the run's; None leaves it.
    """

    number: int
    settings: Settings = dataclasses.field(default_factory=Settings)
    model: str | None = None

    @property
    def mark(self) -> bytes:
        """What stands in the ledger for the content of a row that waits to be asked so."""
        return b"retry:%d" % self.number

    def of(self, request: Request) -> Request:
        """Return a request as it is in this variant."""
        given = {
            one.name: value
            for one in dataclasses.fields(Settings)
            if one.name != "extra" and (value := getattr(self.settings, one.name)) is not None
        }
        extra = dict(request.settings.extra) | dict(self.settings.extra)
        settings = replace(request.settings, **given, extra=extra)
        return replace(request, settings=settings, model=self.model or request.model)

    def facts(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "number": self.number,
            "model": self.model,
            "settings": plain_settings(self.settings),
        }

    @classmethod
    def from_facts(cls, facts: dict[str, Any]) -> Variant:
        """Read what ``facts`` gave."""
        return cls(facts["number"], read_settings(facts["settings"]), facts["model"])


def plain_settings(settings: Settings) -> dict[str, Any]:
    """Return settings as plain data, those that are given."""
    found = {one.name: getattr(settings, one.name) for one in dataclasses.fields(Settings)}
    return {name: value for name, value in found.items() if value is not None and value != {}}


def read_settings(facts: dict[str, Any]) -> Settings:
    """Read what ``plain_settings`` gave."""
    given = dict(facts)
    for name in ("temperature", "stop"):
        if isinstance(given.get(name), list):
            given[name] = tuple(given[name])
    return Settings(**given)


class Recipe:
    """How the rows of a brief become requests.

    Args:
        brief: The brief.
        name: How its input is called in messages.
        format: The shape of its records.
        columns: The columns of the first good record; none where there is no such record.

    Raises:
        InputError: Prompt, flags and rows do not go together.
        ConfigError: The prompt is no template.
    """

    def __init__(self, brief: Brief, name: str, format: str, columns: Sequence[str]) -> None:  # noqa: A002
        self._brief, self._name, self._format = brief, name, format
        self._template = Template(brief.prompt) if brief.prompt is not None else None
        self._system = Template(brief.system) if brief.system is not None else None
        self._check(columns)

    def _check(self, columns: Sequence[str]) -> None:
        self._check_flags_are_used()
        if not columns:
            return  # not one good record: what is wrong with them says more
        has_prompts = self._format not in _TABLES or "prompt" in columns
        if self._template is None and not has_prompts:
            listed = ", ".join(safe(column, 40) for column in columns)
            raise InputError(
                f"{self._name} has rows of columns, so it needs a prompt\n\n"
                f"  columns: {listed}\n"
                "  --prompt 'Classify {{ column }}' makes one from each row"
            )
        for template in (self._template, self._system):
            problem = template.check(columns, self._name) if template else None
            if problem:
                raise InputError(problem)
        for column, what in ((self._brief.id_column, "ids"), (self._brief.image, "pictures")):
            if column and column not in columns:
                raise InputError(f'{self._name} has no column "{safe(column)}" for the {what}')

    def _check_flags_are_used(self) -> None:
        """Refuse flags that this shape of input would leave without effect."""
        brief, shape = self._brief, self._format
        if brief.agent is not None:
            self._check_suits_agent()
            return
        flags: dict[str, bool] = {}
        if shape == "openai-batch":
            flags = {
                "--prompt": brief.prompt is not None,
                "--system": brief.system is not None,
                "--image": brief.image is not None,
                "--schema or --choices": brief.shape is not None,
                "--set": brief.settings != Settings(),
            }
        elif shape == "chat" and brief.prompt is None:
            flags = {"--system": brief.system is not None, "--image": brief.image is not None}
        given = ", ".join(name for name, is_given in flags.items() if is_given)
        if given:
            raise InputError(
                f"{self._name} has whole requests ({shape}), which {given} cannot change\n\n"
                "  Leave the flag out, or put it into each line's own request."
            )

    def _check_suits_agent(self) -> None:
        """Refuse what an agent says itself, and rows that are no prompts."""
        brief = self._brief
        flags = {
            "--system": brief.system is not None,
            "--image": brief.image is not None,
            "--schema or --choices": brief.shape is not None,
            "--set": brief.settings != Settings(),
            "--cache": brief.cache is not None,
        }
        given = ", ".join(name for name, is_given in flags.items() if is_given)
        if given:
            raise InputError(
                f"{given} cannot be used with --agent: an agent has instructions, output type and "
                "settings of its own\n\n  Put it into the agent."
            )
        if self._format == "openai-batch" or (self._format == "chat" and brief.prompt is None):
            raise InputError(
                f"{self._name} has whole requests ({self._format}), and an agent takes prompts\n\n"
                "  --prompt '{{ column }}' makes one from each row"
            )

    def request_for(self, row: Row) -> Request:
        """Make a row's request.

        Raises:
            ValueError: The row does not give one.
        """
        brief, data = self._brief, row.data
        if self._format == "openai-batch":
            provider = brief.model.partition(":")[0]
            return openai.read({"model": "-"} | _batch_body(data), provider)
        if self._format == "chat" and self._template is None:
            request = openai.read(
                {"model": "-", "messages": data.get("messages")} | _wire(brief), "chat"
            )
            # The wire knows JSON schemas only; a choice comes back as the bare name.
            return request if brief.shape is None else replace(request, output=brief.shape)
        if self._template is not None:
            prompt = self._template.render(data)
        else:
            prompt = data.get("prompt")  # type: ignore[assignment]
            if not isinstance(prompt, str):
                raise ValueError("`prompt` must be a text")
        system = self._system.render(data) if self._system is not None else None
        request = Request.of(
            brief.model, prompt, system=system, output=brief.shape, settings=brief.settings
        )
        if brief.image is None:
            return request
        return with_picture(request, data.get(brief.image), Path(brief.input).parent)

    def reads_files(self, row: Row) -> bool:
        """Tell whether what a row asks is also in a file that it names: a picture."""
        column = self._brief.image
        return column is not None and is_path(row.data.get(column))

    def item_for(self, row: Row) -> Item:
        """Make a row's item.

        Raises:
            ValueError: The row does not give one.
        """
        request = self.request_for(row)
        if self._brief.agent is not None:
            prompt = request.messages[-1].content
            assert isinstance(prompt, str)  # noqa: S101 - other shapes of input were refused
            item = self._brief.agent.item(row, prompt)
        else:
            item = LLMWorkItem(row.item_id, request=request, context=row)
        if (count := self._brief.count_tokens) is not None:
            item.estimated_input_tokens = count_request(request, count)
        return item


def with_picture(request: Request, value: Any, folder: Path) -> Request:
    """Return a request of one prompt with a picture behind it.

    Args:
        request: What is asked.
        value: An address, a ``data:`` URL or a path; nothing and the empty text are no picture.
        folder: Where a path begins.

    Raises:
        ValueError: It is none of these, or there is no picture.
    """
    if value is None or value == "":
        return request
    if not isinstance(value, str):
        raise ValueError("the picture must be an address or a path")  # noqa: TRY004 - bad input, not a bug
    if value.startswith(_ADDRESSES):
        image = Image(value)
    else:
        try:
            image = Image.from_file(folder / value)
        except OSError as error:
            raise ValueError(f"the picture cannot be read: {error.strerror}") from None
    *before, turn = request.messages
    assert isinstance(turn.content, str)  # noqa: S101 - it was made so
    return replace(request, messages=(*before, Message(turn.role, (Text(turn.content), image))))


def is_path(value: Any) -> bool:
    """Tell whether the picture that a row names is in a file."""
    return bool(value) and not (isinstance(value, str) and value.startswith(_ADDRESSES))


def has_numbered_columns(brief: Brief) -> bool:
    """Tell whether the prompt names columns by their position: then a table has no header."""
    texts = (brief.prompt, brief.system)
    return any(Template(text).is_numbered for text in texts if text is not None)


def _batch_body(line: dict[str, Any]) -> dict[str, Any]:
    body = line.get("body")
    if not isinstance(body, dict):
        raise ValueError("`body` must be an object")  # noqa: TRY004 - bad input, not a bug
    url = line.get("url", _CHAT_URL)
    if not isinstance(url, str) or not url.endswith("/chat/completions"):
        raise ValueError(f"`url` is {url!r}; this version sends {_CHAT_URL} only")
    if body.get("stream"):
        raise ValueError("`stream` cannot be used: a row has one whole answer")
    return body


def _wire(brief: Brief) -> dict[str, Any]:
    """Return the settings and the shape of a brief, as fields of a wire body."""
    body: dict[str, Any] = json.loads(
        openai.CHAT.encode(Request.of("x:-", "-", output=brief.shape, settings=brief.settings))
    )
    del body["messages"], body["model"]
    return body
