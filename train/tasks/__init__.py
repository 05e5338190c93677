"""The sample tasks and users' own data, all in one small type, `Task`; the table is in `table.py`."""

from .problem import Problem
from .table import Task, choose_tasks, from_file

__all__ = ["Problem", "Task", "choose_tasks", "from_file"]
