"""What several workers make of one job: a simulation of the graph, and times recorded for it."""
