"""OpenAI's SDK for Azure takes the simulator for it, at the older addresses and the new ones."""

from __future__ import annotations

import openai
import pytest
from openai import AzureOpenAI, OpenAI


def older(running, key):
    root = running.base_url.removesuffix("/v1")
    return AzureOpenAI(
        azure_endpoint=root, api_version="2024-10-21", api_key=key, max_retries=0, timeout=10.0
    )


def newer(running, key):
    root = running.base_url.removesuffix("/v1")
    return OpenAI(base_url=f"{root}/azure/openai/v1", api_key=key, max_retries=0, timeout=10.0)


CLIENTS = pytest.mark.parametrize("client", [older, newer])


def ask(client, prompt="<<echo>>Lima", model="mine"):
    messages = [{"role": "user", "content": prompt}]
    with client:
        return client.chat.completions.create(model=model, messages=messages)


@CLIENTS
def test_it_answers(server, client):
    answer = ask(client(server, "any"))

    assert (answer.choices[0].message.content, answer.model) == ("Lima", "mine")
    assert answer.usage.total_tokens > 0


@CLIENTS
@pytest.mark.parametrize(
    ("key", "prompt", "model", "kind", "code"),
    [
        ("invalid", "hi", "mine", openai.AuthenticationError, "401"),
        ("forbidden", "hi", "mine", openai.PermissionDeniedError, "403"),
        ("any", "hi", "missing-1", openai.NotFoundError, "DeploymentNotFound"),
        ("any", "<<p429>>", "mine", openai.RateLimitError, "RateLimitReached"),
        ("any", "<<prefuse>>", "mine", openai.BadRequestError, "content_filter"),
        ("any", "<<p503>>", "mine", openai.InternalServerError, "server_is_overloaded"),
    ],
)
def test_errors_are_the_sdks_own(server, client, key, prompt, model, kind, code):
    with pytest.raises(kind) as caught:
        ask(client(server, key), prompt, model)

    assert caught.value.code == code
