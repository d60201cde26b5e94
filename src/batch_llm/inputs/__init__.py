"""Reading files of prompts."""

from __future__ import annotations

from batch_llm.inputs.records import Problem, Row
from batch_llm.inputs.rows import FORMATS, Source
from batch_llm.inputs.shapes import Identifier, id_column_of, shape_of
from batch_llm.inputs.template import Template
from batch_llm.inputs.values import ValueSource, check_is_rows, read_value

__all__ = [
    "FORMATS",
    "Identifier",
    "Problem",
    "Row",
    "Source",
    "Template",
    "ValueSource",
    "check_is_rows",
    "id_column_of",
    "read_value",
    "shape_of",
]
