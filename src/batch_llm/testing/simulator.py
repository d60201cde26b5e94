"""A simulated provider for your tests: the class, and a pytest fixture that starts one.

    from batch_llm.testing.simulator import simulator

    def test_my_pipeline(simulator):
        client = openai.OpenAI(base_url=simulator.base_url, api_key="any")
        other = anthropic.Anthropic(base_url=simulator.sdk_url("anthropic"), api_key="any")

The module imports without pytest; then it has no fixture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batch_llm.simulator.server import Simulator

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Simulator"]

try:
    import pytest
except ImportError:
    pass
else:
    __all__ += ["simulator"]

    @pytest.fixture
    def simulator(request: pytest.FixtureRequest) -> Iterator[Simulator]:
        """Run a simulator for one test: ``fast``, or the profile given to the test.

        Give one with ``@pytest.mark.parametrize("simulator", ["flaky?seed=7"], indirect=True)``.
        """
        with Simulator(getattr(request, "param", "fast")) as running:
            yield running
