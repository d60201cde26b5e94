"""Classifiers for particular providers. The default knows them all; a run needs no choice."""

from __future__ import annotations

from batch_llm.classifiers.anthropic import AnthropicErrorClassifier
from batch_llm.classifiers.gemini import GeminiErrorClassifier
from batch_llm.classifiers.groq import GroqErrorClassifier
from batch_llm.classifiers.http import HttpErrorClassifier
from batch_llm.classifiers.mistral import MistralErrorClassifier
from batch_llm.classifiers.openai import OpenAIErrorClassifier
from batch_llm.strategies.default_classifier import DefaultErrorClassifier

__all__ = [
    "AnthropicErrorClassifier",
    "DefaultErrorClassifier",
    "GeminiErrorClassifier",
    "GroqErrorClassifier",
    "HttpErrorClassifier",
    "MistralErrorClassifier",
    "OpenAIErrorClassifier",
]
