"""Push many LLM requests through any provider."""
