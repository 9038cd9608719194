"""Four virtual devices for every test; must be set before jax starts."""

import os

os.environ.setdefault('XLA_FLAGS', '--xla_force_host_platform_device_count=4')
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

from absl import flags

flags.FLAGS.mark_as_parsed()
