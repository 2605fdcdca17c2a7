"""Parameters in from other frameworks, parameters and programs out."""
