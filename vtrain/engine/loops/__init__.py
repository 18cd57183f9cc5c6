"""Training loops, whoever listens: their steps, what they are given, what they have beyond model and optimizer."""
