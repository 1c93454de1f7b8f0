"""Judging jobs on hostile models: in helper processes with limits, few at a time.

`inspectors` keeps the helpers, `helper` is what runs in one, `channel` what lies between, `verdict`
what comes out.
"""
