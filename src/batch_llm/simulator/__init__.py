"""A provider on this machine: wire formats, limits, latency and faults."""

from __future__ import annotations

from batch_llm.simulator.answers import answer_digest
from batch_llm.simulator.profile import PROFILES, Profile, parse_profile

__all__ = ["PROFILES", "Profile", "answer_digest", "parse_profile"]
