"""The notebook's side: the pool that learners use, and what it makes of the ranks' messages."""
