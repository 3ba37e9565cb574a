"""Figures and tables of what was measured; nothing below this folder draws."""
