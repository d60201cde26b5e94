"""Hooks around each item."""

from __future__ import annotations

from batch_llm.middleware.base import BaseMiddleware, Middleware

__all__ = ["BaseMiddleware", "Middleware"]
