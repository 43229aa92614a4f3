"""The model to be compressed: found, checked and loaded."""

from evaluators.teacher.config import load_config
from evaluators.teacher.loading import Teacher, load_teacher

__all__ = ["Teacher", "load_config", "load_teacher"]
