"""The detector as ONNX programs, by a converter of our own."""

from gfl_jax.export.onnx.model import in_float32, load, write

__all__ = ['in_float32', 'load', 'write']
