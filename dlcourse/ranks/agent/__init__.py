"""The agent: one process a machine that has torch imported and starts ranks on request."""
