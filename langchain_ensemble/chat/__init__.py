"""A conversation as each member reads it: templates, tools, thinking. No LangChain, no time."""
