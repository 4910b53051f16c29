"""Callbacks for training frameworks: each file imports its framework, and nothing here imports a file."""
