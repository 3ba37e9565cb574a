"""Lesson 10: autocast, loss scaling and master weights."""
