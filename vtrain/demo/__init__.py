"""The demonstration: an honest run, and a trainer who cheats and signs it well."""
