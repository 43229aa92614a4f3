"""The teacher: find, check and load the model to be pruned."""

from evaluators.teacher.config import load_config
from evaluators.teacher.loading import Teacher, load_teacher

__all__ = ["Teacher", "load_config", "load_teacher"]
