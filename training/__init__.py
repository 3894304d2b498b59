"""Training room: makes the embedded base model and the adapters that ship with it."""
