"""Which errors a user can mend."""

# What they say is what is wrong and what to do: no traceback adds to it, and starting
# again changes nothing.
FORESEEN = (ValueError, OSError, FloatingPointError)
