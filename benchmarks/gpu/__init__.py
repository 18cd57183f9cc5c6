"""``make gpu``: everything that only a GPU can show, in order of worth, each part alone and within its time."""
