"""x"""

from absl import flags

FLAGS = flags.FlagValues()
