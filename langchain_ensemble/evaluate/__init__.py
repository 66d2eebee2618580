"""Accuracy on question sets: metrics, local jsonl tasks with the papers' prompts."""

from langchain_ensemble.evaluate.running import Outcome, Result, evaluate
from langchain_ensemble.evaluate.tasks import Question, Task, paper_task

__all__ = ["Outcome", "Question", "Result", "Task", "evaluate", "paper_task"]
