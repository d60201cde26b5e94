"""What the simulated model says: derived from the prompt, so that it can be checked."""

from __future__ import annotations

import hashlib
import re

ECHO = "<<echo>>"
#: A fault that a prompt asks for: ``<<p503>>``, ``<<pquota:billing_hard_limit_reached>>``.
_FAULT = re.compile(r"<<(p[a-z0-9]+)(?::([a-z_]+))?>>")

_OPENINGS = (
    "The figures point to",
    "In short, this is about",
    "Most sources agree on",
    "The usual answer is",
    "Taken together, it comes to",
    "A careful reading suggests",
    "The question turns on",
    "Experience speaks for",
)
_SUBJECTS = (
    "a modest rise over the last ten years",
    "two causes that are easily confused",
    "the older of the two methods",
    "a number between three and four thousand",
    "the distance from the coast",
    "what was agreed in the spring",
    "the part that most people skip",
    "a rule with one well-known exception",
)
_ENDINGS = (
    "",
    ", though the records are thin",
    ", as the later reports confirm",
    "; nothing else fits the dates",
    ", which is less than it seems",
    ", and that has not changed since",
    ", at least where it was measured",
    "; the rest is a matter of taste",
)


def answer_digest(text: str) -> str:
    """Return the eight characters by which a plain answer names its user message.

    A plain answer begins ``Answer <digest>: ``, where the digest is that of the whole last user
    message, so a test can tell that an answer came back to the question it belongs to.

    Args:
        text: The last user message; the text parts of a list are joined by line feeds.
    """
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=4).hexdigest()


def count_tokens(text: str) -> int:
    """Estimate tokens as a quarter of the characters, at least 1."""
    return max(1, len(text) // 4)


def echo_of(prompt: str) -> str | None:
    """Return what follows the first ``<<echo>>`` of a prompt, or None without one."""
    _, mark, rest = prompt.partition(ECHO)
    return rest if mark else None


def fault_of(prompt: str) -> tuple[str | None, str | None]:
    """Return the fault that a prompt asks for, and the word behind it; None for what is not there.

    It begins with ``<<p``.
    """
    found = _FAULT.search(prompt)
    return (found[1], found[2]) if found else (None, None)


def plain_answer(prompt: str, index: int = 0) -> str:
    """Return a plausible sentence, the same for the same prompt.

    Args:
        prompt: The last user message.
        index: Which of several choices.
    """
    digest = answer_digest(prompt)
    number = int(digest, 16) + index
    opening, subject = _OPENINGS[number % 8], _SUBJECTS[number // 8 % 8]
    return f"Answer {digest}: {opening} {subject}{_ENDINGS[number // 64 % 8]}."
