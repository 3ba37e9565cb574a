"""The same training step in other libraries, for the table beside ours."""
