"""Tests, in the folders of gfl_jax. pytest's addopts name `typecheck`."""

from beartype import BeartypeConf, beartype

# Checks the annotations of gfl_jax; as for pyright, an int serves as a float.
typecheck = beartype(conf=BeartypeConf(is_pep484_tower=True))
