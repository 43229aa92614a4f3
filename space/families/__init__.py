"""The table of model types that can be pruned, and along which axes (``SUPPORT.md``)."""
