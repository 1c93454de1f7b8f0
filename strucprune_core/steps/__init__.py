"""The work of each unit, one file per kind. `run` in `pipeline` calls them; `units` orders them.

Every step has the same signature, `step(job, unit, draft)`: it reads finished units from the job's
workspace and leaves files and values in the draft.
"""
