"""Studies: the rows of a table, each trained over seeds."""
