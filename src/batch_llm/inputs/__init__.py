"""Reading files of prompts."""

from __future__ import annotations

from batch_llm.inputs.records import Problem, Row
from batch_llm.inputs.rows import FORMATS, Source
from batch_llm.inputs.template import Template

__all__ = ["FORMATS", "Problem", "Row", "Source", "Template"]
