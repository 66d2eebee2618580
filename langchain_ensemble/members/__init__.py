"""Members: one model each, its weights, tokenizer, chat template and KV cache."""
