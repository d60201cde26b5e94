"""Agents as what a run asks: found by name or file, given a model, made into items."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import json
import sys
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import PydanticUserError, TypeAdapter

from batch_llm import agents
from batch_llm.base import LLMWorkItem
from batch_llm.exceptions import ConfigError, InputError, MissingExtraError
from batch_llm.providers.callables import is_pydantic_ai, lane_of
from batch_llm.providers.observed import can_observe, observe
from batch_llm.providers.registry import Endpoint, open_pool
from batch_llm.providers.table import PROVIDERS, SIMULATED, is_simulator

if TYPE_CHECKING:
    from contextlib import ExitStack

    from batch_llm.inputs import Row
    from batch_llm.runs.brief import Brief

_FLAG = "--agent"
_FILES = {".yaml", ".yml", ".json"}
_EXPECTED = "MODULE:VARIABLE, or an agent's .yaml or .json file"


class AnsweringAgent:
    """An agent, or a factory of agents, that answers the rows of a brief.

    Args:
        found: Anything with ``async run(prompt)``; or a function from an attempt's number, from 1,
            to such a thing. The function is called once here, to see that it works.
        name: How it is called.

    Raises:
        ConfigError: It is neither.
    """

    def __init__(self, found: Any, name: str) -> None:
        self.name = name
        self._factory = None
        if _runs(found):
            self._agent = found
        elif callable(found):
            self._factory = found
            self._agent = _first(found, name)
        else:
            kind = type(found).__name__
            expected = f"an agent, or a function that makes one: something with `run`, no {kind}"
            raise ConfigError(_FLAG, name, expected)
        self.version = _version(self._agent)
        self._fallbacks: list[Any] = []
        self._is_simulated = False
        self._made: list[Any] = []

    @property
    def model(self) -> str:
        """The name of its model, else its own; of a factory's agents, the first's."""
        return lane_of(self._agent).partition(" ")[0] or self.name

    @property
    def places(self) -> tuple[Endpoint, ...]:
        """What is known of where its calls go."""
        model, _, server = lane_of(self._agent).partition(" ")
        provider, _, name = model.partition(":")
        # A simulator has a new address each time, which says nothing.
        url = f"https://{server}" if server and not self._is_simulated else ""
        return (Endpoint(provider, name, url, {}),)

    def open(self, brief: Brief, opened: ExitStack) -> None:
        """Give it the models of a brief, and let admission see the headers that their clients get.

        Raises:
            UnknownModelError: There is no such model.
            MissingKeyError: There is no key for it.
            ConfigError: The agent has no model and none is given, or cannot be given one.
        """
        is_own = brief.agent_model is None
        if not is_own or brief.fallbacks:
            self._check_takes_models(brief)
        if brief.agent_model is not None:
            self._agent = _asked_of(self._agent, self._model(brief, brief.agent_model, opened))
            self._is_simulated = is_simulator(brief.agent_model.partition(":")[0])
        elif self._factory is None and is_pydantic_ai(self._agent):
            own = self._agent.model
            if own is None:
                raise ConfigError("--model", None, f"given: {self.name} has none of its own")
            if isinstance(own, str):  # pydantic-ai would make it when it is first asked
                self._made.append(agents.model(own))
                self._agent = _asked_of(self._agent, self._made[-1])
        self._agent = _observed(self._agent)
        self._fallbacks = [
            _asked_of(self._agent, self._model(brief, name, opened)) for name in brief.fallbacks
        ]

    def _model(self, brief: Brief, name: str, opened: ExitStack) -> Any:
        self._made.append(_model(brief, name, opened))
        return self._made[-1]

    async def aclose(self) -> None:
        """Close the connections of models that were made here; the agent's own are not."""
        while self._made:
            model = self._made.pop()
            if hasattr(model, "__aexit__"):
                async with model:  # whoever leaves it last closes its client
                    pass

    def _check_takes_models(self, brief: Brief) -> None:
        flag = "--fallback" if brief.agent_model is None else "--model"
        if self._factory is not None:
            raise ConfigError(
                flag, self.name, "left out: a factory chooses by the attempt's number"
            )
        if not is_pydantic_ai(self._agent):
            raise ConfigError(flag, self.name, "left out: only pydantic-ai's agents take a model")

    def as_answered(self, output: Any) -> Any:
        """Return an output that a ledger kept as what the agent has given, as far as that is known.

        It is where its output type is one type: a model's fields become the model again.
        """
        kind = getattr(self._agent, "output_type", None)
        if not isinstance(kind, type):
            return output
        try:
            return TypeAdapter(kind).validate_python(output)
        except (PydanticUserError, ValueError):  # of another version of the type
            return output

    def item(self, row: Row, prompt: str) -> LLMWorkItem[Any, Any, Row]:
        """Return a row as an item."""
        if self._factory is not None:
            factory = self._factory
            return LLMWorkItem(
                row.item_id,
                agent_factory=lambda attempt: _observed(factory(attempt)),
                prompt=prompt,
                context=row,
                version=self.version,
            )
        return LLMWorkItem(
            row.item_id,
            agent=self._agent,
            prompt=prompt,
            context=row,
            version=self.version,
            fallbacks=self._fallbacks,
        )


def load_agent(name: str) -> AnsweringAgent:
    """Find an agent by ``module:variable``, ``path.py:variable``, or in pydantic-ai's file format.

    Raises:
        ConfigError: It cannot be loaded; the reason is in the message.
        MissingExtraError: A file needs pydantic-ai, or PyYAML.
    """
    if Path(name).suffix.lower() in _FILES:
        return AnsweringAgent(_from_file(name), name)
    module, colon, variable = name.rpartition(":")
    if not colon or not module or not variable:
        raise ConfigError(_FLAG, name, _EXPECTED)
    try:
        found = getattr(_module(module), variable)
    except Exception as error:
        raise ConfigError(_FLAG, name, f"importable ({_reason(error)})") from error
    return AnsweringAgent(found, name)


def named_agent(found: Any) -> AnsweringAgent:
    """Take an agent, or a factory of agents, under the name that it has itself.

    Raises:
        ConfigError: It is neither.
    """
    own = getattr(found, "name", None) or getattr(found, "__qualname__", None)
    return AnsweringAgent(found, own if isinstance(own, str) else type(found).__qualname__)


def _module(name: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:  # it stays: agents import their tools when they run
        sys.path.insert(0, here)
    path = Path(name)
    if path.suffix != ".py":
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{name} cannot be imported")
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _from_file(name: str) -> Any:
    if not Path(name).is_file():
        raise InputError(f"{_FLAG}: {name} is not a file that can be read")
    try:
        from pydantic_ai import Agent
    except ImportError:
        raise MissingExtraError(f"{_FLAG} {name}", "pydantic-ai") from None
    try:
        return Agent.from_file(name, defer_model_check=True)
    except ImportError as error:  # PyYAML
        raise InputError(f"{_FLAG}: {name}: {error}; or write it as .json") from error
    except Exception as error:
        raise ConfigError(_FLAG, name, f"an agent of pydantic-ai ({_reason(error)})") from error


def _first(factory: Any, name: str) -> Any:
    try:
        made = factory(1)
    except Exception as error:
        expected = f"a function from an attempt's number to an agent ({_reason(error)})"
        raise ConfigError(_FLAG, name, expected) from error
    if not _runs(made):
        raise ConfigError(_FLAG, name, f"a function that returns agents, not {type(made).__name__}")
    return made


def _runs(found: Any) -> bool:
    return not isinstance(found, type) and callable(getattr(found, "run", None))


def _asked_of(agent: Any, model: Any) -> Any:
    """Return an agent that is the same but for its model; the original is not changed."""
    other = copy.copy(agent)
    other.model = model
    return other


def _observed(agent: Any) -> Any:
    return observe(agent) if can_observe(agent) else agent


def _model(brief: Brief, name: str, opened: ExitStack) -> Any:
    """Make a model by the name that the command has for it."""
    prefix = name.partition(":")[0]
    is_here = is_simulator(prefix) or (prefix in PROVIDERS and brief.base_url is not None)
    if not is_here:
        return agents.model(name)
    places = opened.enter_context(open_pool(name, **brief.places_of(name)))
    if len(places) > 1:
        raise ConfigError("--keys or --base-url", len(places), "one, where an agent is asked")
    (endpoint,) = places
    spoken = agents.sdk_prefix(SIMULATED.get(prefix, prefix))
    # Google's SDK refuses a model's name with the options of a simulator in it.
    plain = endpoint.model.partition("?")[0] if is_simulator(prefix) else endpoint.model
    return agents.model(
        f"{spoken}:{plain}",
        base_url=agents.sdk_base_url(spoken, endpoint.url),
        api_key=endpoint.secret or "none",
    )


def _version(agent: Any) -> str:
    """Return what tells an agent from another one as far as its answers go.

    That is what it declares itself (``version``); without that, its name, settings, instructions
    and output type, as far as they can be seen. Code, such as that of tools, cannot.
    """
    declared = getattr(agent, "version", None)
    if isinstance(declared, str | int):
        return str(declared)
    if not is_pydantic_ai(agent):
        return ""
    try:
        shape = agent.output_json_schema()
    except Exception:  # noqa: BLE001 - an output type without a schema
        shape = repr(agent.output_type)
    instructions = [getattr(one, "instruction", one) for one in getattr(agent, "_instructions", ())]
    seen = [
        agent.name,
        agent.model_settings if not callable(agent.model_settings) else None,
        [one for one in instructions if isinstance(one, str)],
        list(getattr(agent, "_system_prompts", ())),
        shape,
    ]
    text = json.dumps(seen, sort_keys=True, default=repr)
    return blake2b(text.encode(errors="replace"), digest_size=8).hexdigest()


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
