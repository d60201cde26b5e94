"""Classifiers for particular providers."""

from __future__ import annotations

from batch_llm.classifiers.gemini import GeminiErrorClassifier
from batch_llm.classifiers.http import HttpErrorClassifier
from batch_llm.strategies.default_classifier import DefaultErrorClassifier

__all__ = ["DefaultErrorClassifier", "GeminiErrorClassifier", "HttpErrorClassifier"]
