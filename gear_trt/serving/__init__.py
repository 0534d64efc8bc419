"""Many requests at once: scheduler, OpenAI-compatible server, metrics (extra `[serve]`)."""
