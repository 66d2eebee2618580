"""Time: what happens from one token to the next. No transformers, no concrete fusion."""
