"""The two commands: words into functions and back. No mathematics, and nobody imports it."""
