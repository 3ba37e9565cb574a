"""The live panel: a widget, its script and its style sheet."""
