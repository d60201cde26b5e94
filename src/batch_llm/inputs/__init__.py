"""Reading files of prompts."""

from __future__ import annotations

from batch_llm.inputs.rows import FORMATS, Problem, Row, Source
from batch_llm.inputs.template import Template

__all__ = ["FORMATS", "Problem", "Row", "Source", "Template"]
