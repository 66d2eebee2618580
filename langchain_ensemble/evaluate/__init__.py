"""Accuracy on question sets: metrics, local jsonl tasks with the papers' prompts."""
