"""SimRate's judge: the paper's prompt, any language model behind an OpenAI-compatible server."""
