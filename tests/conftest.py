"""Settings of all tests, made before jax starts.

Eight virtual CPU devices; no silent broadcast between arrays of unequal rank; and no
optimisation by the compiler, which takes most of a test's time and changes no result.
A program that two tests compile comes from a cache the second time.
"""

import os
import tempfile

os.environ['XLA_FLAGS'] = ' '.join(
  [
    os.environ.get('XLA_FLAGS', ''),
    '--xla_backend_optimization_level=0',
    '--xla_llvm_disable_expensive_passes=true',
  ]
)

import jax  # noqa: E402

jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')

_CACHE = tempfile.TemporaryDirectory(prefix='gfl_jax_tests_')
jax.config.update('jax_compilation_cache_dir', _CACHE.name)
