"""A rank's side: runs cells in its main thread, answers the notebook from a second one."""
