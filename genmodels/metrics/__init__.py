"""Scores of generated images, each computed by one stated protocol."""
