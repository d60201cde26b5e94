"""Readers: files become rows or problems, templates become prompts. Nothing is sent from here."""

from __future__ import annotations

from batch_llm.inputs.check import CheckReport, check
from batch_llm.inputs.formats import Format
from batch_llm.inputs.problem import InputError, Problem
from batch_llm.inputs.row import Row
from batch_llm.inputs.source import Source, open_rows
from batch_llm.inputs.template import PromptError, Template

__all__ = [
    "CheckReport",
    "Format",
    "InputError",
    "Problem",
    "PromptError",
    "Row",
    "Source",
    "Template",
    "check",
    "open_rows",
]
