"""Block decoding of exported students with numpy and an engine; torch is not needed here."""

from .errors import NumericalError, UserError
from .model import Answer, Block, Model, load

__all__ = ["Answer", "Block", "Model", "NumericalError", "UserError", "load"]
