"""Decodes exported students block by block with numpy and an engine, without torch."""

from .decoding.options import DecodeOptions
from .errors import DeviceError, NumericalError, UserError
from .model import Answer, Block, Model
from .open_bundle import load

__all__ = ["Answer", "Block", "DecodeOptions", "DeviceError", "Model", "NumericalError", "UserError", "load"]
