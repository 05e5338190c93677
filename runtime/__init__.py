"""Block decoding of exported students with numpy and an engine; torch is not needed here."""

from .errors import DeviceError, NumericalError, UserError
from .model import Answer, Block, Model
from .open_bundle import load

__all__ = ["Answer", "Block", "DeviceError", "Model", "NumericalError", "UserError", "load"]
