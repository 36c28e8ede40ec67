"""Embedding tables and their optimizer."""
