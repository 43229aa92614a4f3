"""The teacher: find, check and load the model to be pruned."""

from evaluators.teacher.config import has_chat_template, load_config
from evaluators.teacher.loading import Teacher, find_tokenizer, load_teacher

__all__ = ["Teacher", "find_tokenizer", "has_chat_template", "load_config", "load_teacher"]
