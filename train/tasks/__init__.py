"""Provides the sample tasks and users' own data as one type, `Task`; `table.py` lists the sample tasks."""

from .problem import Problem
from .table import Task, choose_tasks, from_file

__all__ = ["Problem", "Task", "choose_tasks", "from_file"]
