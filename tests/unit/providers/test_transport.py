from __future__ import annotations

import sys

import pytest

from batch_llm.providers.transport import SPARE_FILES, raise_file_limit

resource = pytest.importorskip("resource")


class Limits:
    """The process's limit on open files, as far as ``raise_file_limit`` knows it."""

    def __init__(self, soft, hard, kernel=None):
        self.soft, self.hard, self.kernel = soft, hard, kernel

    def getrlimit(self, _kind):
        return self.soft, self.hard

    def setrlimit(self, _kind, limits):
        if self.kernel is not None and limits[0] > self.kernel:
            raise ValueError("current limit exceeds maximum limit")
        self.soft, self.hard = limits


@pytest.fixture
def limits(monkeypatch):
    def use(soft, hard, kernel=None):
        fake = Limits(soft, hard, kernel)
        monkeypatch.setattr(resource, "getrlimit", fake.getrlimit)
        monkeypatch.setattr(resource, "setrlimit", fake.setrlimit)
        return fake

    return use


INFINITE = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("soft", "hard", "kernel", "possible", "soft_after"),
    [
        (4096, 4096, None, None, 4096),
        (256, 4096, None, None, 1000 + SPARE_FILES),
        (256, INFINITE, None, None, 1000 + SPARE_FILES),
        (INFINITE, INFINITE, None, None, INFINITE),
        (256, 512, None, 512 - SPARE_FILES, 512),
        (256, INFINITE, 512, 256 - SPARE_FILES, 256),
        (20, 20, None, 1, 20),
    ],
)
def test_the_limit_is_raised_as_far_as_needed_and_possible(
    limits, soft, hard, kernel, possible, soft_after
):
    fake = limits(soft, hard, kernel)

    assert raise_file_limit(1000) == possible
    assert (fake.soft, fake.hard) == (soft_after, hard)


def test_windows_has_no_such_limit(limits, monkeypatch):
    fake = limits(20, 20)
    monkeypatch.setattr(sys, "platform", "win32")

    assert raise_file_limit(1000) is None
    assert fake.soft == 20
