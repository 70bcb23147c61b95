"""Which sites a graft replaces: `layers=`, read, held against the sites of a Program and, for `auto-`, measured."""
