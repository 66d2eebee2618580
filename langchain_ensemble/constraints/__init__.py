"""What an answer may not be: stop strings, bytes that are no text. No model, no tokenizer."""
