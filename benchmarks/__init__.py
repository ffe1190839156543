"""Measurements of softattn: speed, memory and error. README.md beside this file lists them."""
