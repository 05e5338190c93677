"""Provides the sample tasks and users' own data, all as one small type, `Task`; `table.py` lists them."""

from .problem import Problem
from .table import Task, choose_tasks, from_file

__all__ = ["Problem", "Task", "choose_tasks", "from_file"]
