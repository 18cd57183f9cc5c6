"""Steps of a run inside other people's training loops; each module imports its library, this package none."""
