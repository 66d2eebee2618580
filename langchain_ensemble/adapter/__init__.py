"""What the LangChain classes share: settings, one engine for equal settings, runs, outputs."""
