"""Judges jobs before they are accepted, in helper processes with limits: models may be hostile.

`inspectors` keeps the helpers. `helper` runs in each of them and makes a `verdict`. It reads stores
only through `channel`, whose other end is `serving`.
"""
