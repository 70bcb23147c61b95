"""`compile serve`: the OpenAI chat and completions protocol over HTTP, in front of one generation engine."""
