"""Every exception that a provider's library exports has a verdict; the lists are complete."""

from __future__ import annotations

import inspect

import aiohttp
import anthropic
import google.genai.errors
import groq
import httpx
import httpx2
import mistralai.client.errors
import openai
import pydantic
import pydantic_ai.exceptions as ai
import pytest

from batch_llm.classifiers import DefaultErrorClassifier

classify = DefaultErrorClassifier().classify
REQUEST = httpx2.Request("POST", "http://h/")
#: groq still stands on the old library.
OLD_REQUEST = httpx.Request("POST", "http://h/")


def exported(module):
    names = getattr(module, "__all__", None) or dir(module)
    found = (getattr(module, name, None) for name in names)
    return {
        one.__name__: one
        for one in found
        if inspect.isclass(one) and issubclass(one, BaseException)
    }


def verdict(error):
    info = classify(error)
    return info.error_category, info.is_retryable


LIMIT = ("rate_limit", True)
QUOTA = ("quota", False)
AUTH = ("auth", False)
BAD = ("bad_request", False)
BUSY = ("overloaded", True)
SERVER = ("server_error", True)
TIMEOUT = ("timeout", True)
CONNECTION = ("connection_error", True)
NOT_FOUND = ("not_found", False)
INTERNAL = ("internal", False)
INVALID = ("validation_error", True)
FILTERED = ("content_filter", False)
UNKNOWN = ("unknown", True)


def bare(kind):
    error = kind.__new__(kind)
    Exception.__init__(error, "x")
    return error


def openai_status(status, code=None, headers=()):
    body = {"message": "no", "type": "t", "param": None, "code": code}

    def make(kind):
        response = httpx2.Response(status, headers=dict(headers), request=REQUEST)
        return kind("no", response=response, body=body)

    return make


OPENAI = {
    "OpenAIError": (lambda kind: kind("Missing credentials: set OPENAI_API_KEY"), AUTH),
    "APIError": (lambda kind: kind("boom", REQUEST, body={"code": "server_error"}), SERVER),
    "APIStatusError": (openai_status(408), TIMEOUT),
    "APITimeoutError": (lambda kind: kind(REQUEST), TIMEOUT),
    "APIConnectionError": (lambda kind: kind(request=REQUEST), CONNECTION),
    "APIResponseValidationError": (
        lambda kind: kind(httpx2.Response(200, request=REQUEST), {}),
        SERVER,
    ),
    "BadRequestError": (openai_status(400), BAD),
    "AuthenticationError": (openai_status(401, "invalid_api_key"), AUTH),
    "OAuthError": (
        lambda kind: kind(response=httpx2.Response(401, request=REQUEST), body={"error": "x"}),
        AUTH,
    ),
    "PermissionDeniedError": (openai_status(403), AUTH),
    "NotFoundError": (openai_status(404, "model_not_found"), NOT_FOUND),
    "ConflictError": (openai_status(409), SERVER),
    "UnprocessableEntityError": (openai_status(422), BAD),
    "RateLimitError": (openai_status(429, "rate_limit_exceeded"), LIMIT),
    "InternalServerError": (openai_status(500, "server_error"), SERVER),
    "LengthFinishReasonError": (bare, ("truncated", True)),
    "ContentFilterFinishReasonError": (lambda kind: kind(), FILTERED),
    "InvalidWebhookSignatureError": (lambda kind: kind("x"), INTERNAL),
    "WebSocketQueueFullError": (bare, BUSY),
    "WebSocketConnectionClosedError": (bare, CONNECTION),
}


def anthropic_status(status, name="t", code=None):
    inner = {"type": name, "message": "no"} | ({"details": {"error_code": code}} if code else {})

    def make(kind):
        response = httpx2.Response(status, request=REQUEST)
        return kind("no", response=response, body={"type": "error", "error": inner})

    return make


ANTHROPIC = {
    "AnthropicError": (lambda kind: kind("Could not resolve the api_key"), AUTH),
    "APIError": (
        lambda kind: kind("x", REQUEST, body={"error": {"type": "overloaded_error"}}),
        BUSY,
    ),
    "APIStatusError": (anthropic_status(200, "overloaded_error"), BUSY),  # in mid-stream
    "APITimeoutError": (lambda kind: kind(REQUEST), TIMEOUT),
    "APIConnectionError": (lambda kind: kind(request=REQUEST), CONNECTION),
    "APIResponseValidationError": (
        lambda kind: kind(httpx2.Response(200, request=REQUEST), {}),
        SERVER,
    ),
    "APIWebhookValidationError": (bare, INTERNAL),
    "BadRequestError": (anthropic_status(400, "invalid_request_error"), BAD),
    "AuthenticationError": (anthropic_status(401, "authentication_error"), AUTH),
    "PaymentRequiredError": (anthropic_status(402, "billing_error"), QUOTA),
    "PermissionDeniedError": (anthropic_status(403, "permission_error"), AUTH),
    "NotFoundError": (anthropic_status(404, "not_found_error"), NOT_FOUND),
    "RequestTimeoutError": (anthropic_status(408), TIMEOUT),
    "ConflictError": (anthropic_status(409, "conflict_error"), SERVER),
    "PreconditionFailedError": (anthropic_status(412), BAD),
    "ContentTooLargeError": (anthropic_status(413, "request_too_large"), BAD),
    "RequestTooLargeError": (anthropic_status(413, "request_too_large"), BAD),
    "UnprocessableEntityError": (anthropic_status(422), BAD),
    "RateLimitError": (anthropic_status(429, "rate_limit_error"), LIMIT),
    "RequestHeaderFieldsTooLargeError": (anthropic_status(431), BAD),
    "ClientClosedRequestError": (anthropic_status(499), BAD),
    "InternalServerError": (anthropic_status(500, "api_error"), SERVER),
    "HTTPNotImplementedError": (anthropic_status(501), BAD),
    "ServiceUnavailableError": (anthropic_status(503), BUSY),
    "GatewayTimeoutError": (anthropic_status(504, "timeout_error"), TIMEOUT),
    "OverloadedError": (anthropic_status(529, "overloaded_error"), BUSY),
    "ContractSpendLimitReachedError": (
        anthropic_status(429, "rate_limit_error", "contract_spend_limit_reached"),
        QUOTA,
    ),
    "EnforcedSpendLimitReachedError": (
        anthropic_status(429, "rate_limit_error", "enforced_spend_limit_reached"),
        QUOTA,
    ),
    "RampLimitExceededError": (
        anthropic_status(429, "rate_limit_error", "ramp_limit_exceeded"),
        LIMIT,
    ),
    "LinkedOrganizationBillingUnavailableError": (
        anthropic_status(402, "billing_error", "linked_organization_billing_unavailable"),
        QUOTA,
    ),
    "LinkedOrganizationSpendLimitReachedError": (
        anthropic_status(402, "billing_error", "linked_organization_spend_limit_reached"),
        QUOTA,
    ),
    "OrganizationOnHoldError": (
        anthropic_status(400, "invalid_request_error", "organization_on_hold"),
        QUOTA,
    ),
    **dict.fromkeys(
        [
            *("ClaudeCodeKeyCreatorNotMemberError", "ClaudeCodeVersionTooOldError"),
            *("CMEKKeyDisabledError", "CMEKKeyNetworkBlockedError"),
            *("OrganizationTypeNotSupportedError", "ParentOrganizationRequiredError"),
            *("RequestBodyEncodingInvalidError", "RequestBodyEncodingUnsupportedError"),
        ],
        (anthropic_status(400, "invalid_request_error"), BAD),
    ),
    "SandboxEgressRestrictedError": (anthropic_status(403, "permission_error"), AUTH),
    "RequestBodyTooLargeAfterDecodingError": (anthropic_status(413, "request_too_large"), BAD),
    "CMEKContextUnavailableError": (anthropic_status(503), BUSY),
    "CMEKKeyUnreachableError": (anthropic_status(503), BUSY),
    "DeadlineExceededError": (anthropic_status(504, "timeout_error"), TIMEOUT),
    "RetryableError": (lambda kind: kind("x"), SERVER),
    "CredentialsError": (lambda kind: kind("x"), AUTH),
    "IdentityTokenFileError": (lambda kind: kind("x"), AUTH),
}


def groq_status(status, code="c", headers=()):
    body = {"error": {"message": "no", "type": "t", "code": code}}

    def make(kind):
        response = httpx.Response(status, headers=dict(headers), request=OLD_REQUEST)
        return kind("no", response=response, body=body)

    return make


GROQ = {
    "GroqError": (lambda kind: kind("The api_key client option must be set"), AUTH),
    "APIError": (lambda kind: kind("x", OLD_REQUEST, body=None), SERVER),
    "APIStatusError": (groq_status(413, "rate_limit_exceeded", {"retry-after": "5"}), BAD),
    "APITimeoutError": (lambda kind: kind(OLD_REQUEST), TIMEOUT),
    "APIConnectionError": (lambda kind: kind(request=OLD_REQUEST), CONNECTION),
    "APIResponseValidationError": (
        lambda kind: kind(httpx.Response(200, request=OLD_REQUEST), {}),
        SERVER,
    ),
    "BadRequestError": (groq_status(400), BAD),
    "AuthenticationError": (groq_status(401), AUTH),
    "PermissionDeniedError": (groq_status(403), AUTH),
    "NotFoundError": (groq_status(404), NOT_FOUND),
    "ConflictError": (groq_status(409), SERVER),
    "UnprocessableEntityError": (groq_status(422), BAD),
    "RateLimitError": (groq_status(429, "rate_limit_exceeded"), LIMIT),
    "InternalServerError": (groq_status(500), SERVER),
}


def google_error(code, status, *details):
    body = {"error": {"code": code, "message": "no", "status": status, "details": [*details]}}
    return lambda kind: kind(code, body)


GOOGLE = {
    "APIError": (google_error(429, "RESOURCE_EXHAUSTED"), LIMIT),
    "ClientError": (google_error(400, "INVALID_ARGUMENT"), BAD),
    "ServerError": (google_error(503, "UNAVAILABLE"), BUSY),
    "ContinuationInterruptedError": (
        lambda kind: caused(bare(kind), httpx2.ReadTimeout("x", request=REQUEST)),
        TIMEOUT,
    ),
    "ExperimentalWarning": (lambda kind: kind("x"), INTERNAL),
    "FunctionInvocationError": (lambda kind: kind("x"), INTERNAL),
    "UnsupportedFunctionError": (lambda kind: kind("x"), INTERNAL),
    "UnknownApiResponseError": (lambda kind: kind("x"), SERVER),
    "UnknownFunctionCallArgumentError": (lambda kind: kind("x"), INVALID),
}


def caused(error, cause):
    error.__cause__ = cause
    return error


def mistral_status(status, body="{}", headers=()):
    response = httpx2.Response(status, headers=dict(headers), text=body, request=REQUEST)
    return lambda kind: kind("no", response, body)


def with_data(status):
    def make(kind):
        error = kind.__new__(kind)
        mistralai.client.errors.MistralError.__init__(
            error, "no", httpx2.Response(status, request=REQUEST), "{}"
        )
        return error

    return make


MISTRAL = {
    "MistralError": (mistral_status(429, '{"code":"1300"}'), LIMIT),
    "SDKError": (mistral_status(401, '{"detail":"Unauthorized"}'), AUTH),
    "HTTPValidationError": (with_data(422), BAD),
    "ObservabilityError": (with_data(400), BAD),
    "ResponseValidationError": (with_data(200), SERVER),
    "NoResponseError": (lambda kind: kind(), CONNECTION),
}


def ai_status(status, body=None):
    return lambda kind: kind.for_category(kind, status_code=status, model_name="m", body=body)


def in_stream(kind):
    error = kind.__new__(kind)
    RuntimeError.__init__(error, "boom")
    return error


PYDANTIC_AI = {
    "ModelRetry": (lambda kind: kind("x"), INVALID),
    "RetryModelRequest": (lambda kind: kind("x"), INVALID),
    "ToolFailed": (lambda kind: kind("x"), INVALID),
    "CallDeferred": (lambda kind: kind(), INTERNAL),
    "ApprovalRequired": (lambda kind: kind(), INTERNAL),
    "SkipModelRequest": (lambda kind: kind(None), INTERNAL),
    "SkipToolValidation": (lambda kind: kind({}), INTERNAL),
    "SkipToolExecution": (lambda kind: kind(None), INTERNAL),
    "UserError": (lambda kind: kind("x"), INTERNAL),
    "UndrainedPendingMessagesError": (lambda kind: kind("x"), INTERNAL),
    "AgentRunError": (lambda kind: kind("x"), UNKNOWN),
    "RunCancelled": (in_stream, ("cancelled", False)),
    "RunTimedOut": (TimeoutError.__new__, TIMEOUT),
    "SuspendedResponseExpired": (lambda kind: kind("x"), SERVER),
    "UnexpectedModelBehavior": (lambda kind: kind("x"), INVALID),
    "IncompleteToolCall": (lambda kind: kind("x"), ("truncated", True)),
    "ContentFilterError": (lambda kind: kind("x"), FILTERED),
    "UsageLimitExceeded": (lambda kind: kind("x"), BAD),
    "ConcurrencyLimitExceeded": (lambda kind: kind("x"), BUSY),
    "ModelAPIError": (lambda kind: kind("m", "x"), SERVER),
    "ModelHTTPError": (lambda kind: kind(408, "m"), TIMEOUT),
    "ModelRateLimitError": (in_stream, LIMIT),
    "ModelQuotaExceededError": (in_stream, QUOTA),
    "ModelUnavailableError": (in_stream, BUSY),
    "ModelOverloadedError": (in_stream, BUSY),
    "ModelServerError": (in_stream, SERVER),
    "ModelConnectionError": (in_stream, CONNECTION),
    "ModelTimeoutError": (in_stream, TIMEOUT),
    "ModelContextWindowExceededError": (in_stream, ("context_length", False)),
    "ModelRequestRejectedError": (in_stream, BAD),
    "ModelAuthenticationError": (in_stream, AUTH),
    "ModelNotFoundError": (in_stream, NOT_FOUND),
    "ModelRequestTimeout": (in_stream, TIMEOUT),
    "FallbackExceptionGroup": (lambda kind: kind("all", [TimeoutError()]), TIMEOUT),
    **dict.fromkeys(
        [
            *("MessageHistoryMutatedWarning", "UnsupportedSettingWarning"),
            *("CostCalculationFailedWarning", "CostNotFoundWarning"),
            *("UsageExtractionFailedWarning", "UsageLimitUnavailableWarning"),
            "PydanticAIDeprecationWarning",
        ],
        (lambda kind: kind("x"), INTERNAL),
    ),
}

LIBRARIES = {
    "openai": (openai, OPENAI),
    "anthropic": (anthropic, ANTHROPIC),
    "groq": (groq, GROQ),
    "google": (google.genai.errors, GOOGLE),
    "mistral": (mistralai.client.errors, MISTRAL),
    "pydantic-ai": (ai, PYDANTIC_AI),
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_list_has_every_exception_that_the_library_exports(library):
    module, table = LIBRARIES[library]
    found = exported(module)
    # A class of two names (``RequestTooLargeError``) is found once.
    names = set(getattr(module, "__all__", None) or dir(module))

    missing = set(found) - set(table)

    assert not missing, f"no verdict is promised for {sorted(missing)}"
    assert not set(table) - names - set(found)


@pytest.mark.parametrize(
    ("library", "name"),
    [(library, name) for library, (_, table) in LIBRARIES.items() for name in table],
)
def test_each_exception_has_its_verdict(library, name):
    module, table = LIBRARIES[library]
    make, expected = table[name]

    assert verdict(make(getattr(module, name))) == expected


#: Of the HTTP libraries: misuse, and not trouble of the network.
MISUSE = {
    *("InvalidURL", "CookieConflict", "StreamError", "StreamConsumed", "ResponseNotRead"),
    *("RequestNotRead", "StreamClosed", "NotSupportedError"),
}


@pytest.mark.parametrize("library", [httpx, httpx2])
def test_transport_errors_are_known_by_the_names_of_their_classes(library):
    for name, kind in exported(library).items():
        if name in MISUSE or issubclass(kind, Warning):
            continue
        if name == "HTTPStatusError":
            response = library.Response(503, request=library.Request("POST", "http://h/"))
            error = kind("x", request=response.request, response=response)
            assert verdict(error) == BUSY
            continue
        expected = TIMEOUT if issubclass(kind, library.TimeoutException) else CONNECTION
        assert verdict(kind("x")) == expected, name


def test_pydantics_own_error_is_a_bad_answer():
    with pytest.raises(pydantic.ValidationError) as caught:
        pydantic.TypeAdapter(int).validate_python("429 dollars")

    assert verdict(caught.value) == INVALID


def test_an_answer_that_aiohttp_finds_cut_off_is_no_bad_request():
    cause = aiohttp.http_exceptions.ContentLengthError("Not enough data")
    error = caused(aiohttp.ClientPayloadError("not completed"), cause)

    assert verdict(error) == CONNECTION
