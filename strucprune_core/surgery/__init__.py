"""From solved layers to a smaller checkpoint: slicing, and the files of each layout."""
