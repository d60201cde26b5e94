"""The engine: what happens between an item and its result. Start at ``pipeline``."""
