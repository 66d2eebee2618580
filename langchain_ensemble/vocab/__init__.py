"""Strings: the only place where a token is text or bytes; it ends in index tensors."""
