"""One assistant turn: think, answer, call; each phase is a decoding of its own."""
