"""What Azure says otherwise than OpenAI, whose chat completions it serves. No network.

Its keys are in the header ``api-key``; a bearer is taken too, as of Entra ID. Error codes are the
status, as text. A prompt that its filter catches is a 400.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batch_llm.simulator.fields import bearer, header
from batch_llm.simulator.openai_chat import ChatFormat, wait_headers
from batch_llm.simulator.refusals import TROUBLING_KEYS, Trouble

if TYPE_CHECKING:
    from collections.abc import Iterable

    from batch_llm.simulator.refusals import Excess, Refusal

_BAD_KEY = (
    "Access denied due to invalid subscription key or wrong API endpoint. Make sure to provide a "
    "valid key for an active subscription and use a correct regional API endpoint for your "
    "resource."
)
_FILTERED = (
    "The response was filtered due to the prompt triggering Azure OpenAI's content management "
    "policy. Please modify your prompt and retry."
)


class AzureFormat(ChatFormat):
    """Azure's chat completions; limits and bill are those of the account with OpenAI."""

    troubles = ChatFormat.troubles | {
        "no_key": Trouble(401, None, "401", _BAD_KEY),
        "bad_key": Trouble(401, None, "401", _BAD_KEY),
        "forbidden": Trouble(403, None, "403", "Access denied due to Virtual Network rules."),
        "missing_model": Trouble(
            404,
            None,
            "DeploymentNotFound",
            "The API deployment for this resource does not exist.",
        ),
        "no_path": Trouble(404, None, "404", "Resource not found"),
        "prefuse": Trouble(400, None, "content_filter", _FILTERED),
    }

    def check_key(self, headers: Iterable[tuple[bytes, bytes]], query: bytes) -> None:  # noqa: ARG002
        """See ``WireFormat``."""
        secret = header(headers, b"api-key") or bearer(headers)
        if not secret or secret in TROUBLING_KEYS:
            self.check_secret(secret)

    def limited(self, excess: Excess) -> Refusal:
        """See ``WireFormat``."""
        message = (
            "Your requests to this deployment have exceeded its rate limit of "
            f"{excess.limit:.0f} {excess.kind.replace('_', ' ')} a minute. "
            f"Please retry after {max(1, round(excess.seconds))} seconds."
        )
        refusal = self.error(429, message, None, "RateLimitReached")
        refusal.headers = wait_headers(excess)
        return refusal


AZURE = AzureFormat()
