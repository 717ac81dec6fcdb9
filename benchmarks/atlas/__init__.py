"""The atlas of intrinsic dimension: how the tasks of examples/atlas are read, measured, exported and drawn."""
