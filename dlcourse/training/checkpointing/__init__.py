"""Lesson 11: activations computed again instead of kept."""
